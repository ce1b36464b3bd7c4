"""The supervisor's end of a stream socket to a child: whole messages in, framed messages out, never blocking.

What the child has not read yet waits in a bounded buffer; a child that lets it overflow, breaks the framing or says
what is no message has its channel closed. `on_closed` is called once, and never from inside `send`: who sends may be
in the middle of something. Used by `zygote` and `workers`.
"""

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable

import msgspec

from h2qd.wire.workers import UNREADABLE, ChannelError, Reassembler, frame

_READ_BYTES = 64 * 1024  # from 128 KiB on, malloc maps and unmaps a buffer for each read: 15 us in place of 3
_UNSENT_BYTES_MAX = 64 * 1024 * 1024


class Channel:
    """One connected stream socket on the running loop."""

    def __init__(
        self, sock: socket.socket, on_body: Callable[[bytes], None], on_closed: Callable[[str], None]
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._on_body = on_body
        self._on_closed = on_closed
        self._reassembler = Reassembler()
        self._unsent: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._unsent_bytes = 0
        self._open = True
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._read)

    def send(self, message: msgspec.Struct, fds: tuple[int, ...] = ()) -> None:
        """Send a message, with open file descriptors of which the caller keeps no copy."""
        if not self._open:
            _close_all(fds)
            return
        data = frame(message)
        self._unsent.append((data, fds))
        self._unsent_bytes += len(data)
        if self._unsent_bytes > _UNSENT_BYTES_MAX:
            self._loop.call_soon(self.close, "it does not read")
        elif len(self._unsent) == 1:
            self._write()

    def _write(self) -> None:
        try:
            while self._unsent:
                data, fds = self._unsent[0]
                sent = socket.send_fds(self._sock, [data], fds) if fds else self._sock.send(data)
                _close_all(fds)
                self._unsent_bytes -= sent
                if sent == len(data):
                    self._unsent.popleft()
                else:
                    self._unsent[0] = (data[sent:], ())
            self._loop.remove_writer(self._sock)
        except BlockingIOError:
            self._loop.add_writer(self._sock, self._write)
        except OSError as error:
            self._loop.remove_writer(self._sock)
            self._loop.call_soon(self.close, str(error))

    def _read(self) -> None:
        try:
            data = self._sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self.close(str(error))
            return
        if not data:
            self.close("end of stream")
            return
        try:
            for body in self._reassembler.feed(data):
                self._on_body(body)
                if not self._open:
                    return
        except (ChannelError, *UNREADABLE) as error:
            self.close(f"it said something that is no message: {error}")

    def close(self, why: str = "closed") -> None:
        """End the channel; the child sees the end of its stream."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        for _, fds in self._unsent:
            _close_all(fds)
        self._unsent.clear()
        self._sock.close()
        self._on_closed(why)


def _close_all(fds: tuple[int, ...]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
