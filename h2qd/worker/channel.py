"""A worker's end of its socket to the supervisor: typed messages in, typed messages out.

Reading is for one thread, sending for any. A supervisor that does not read makes `send` wait; one that is
gone makes it raise. The protocol is `h2qd.wire.workers`; what messages mean is the loop's business.
"""

import socket
import threading
from collections.abc import Iterator

import msgspec

from h2qd.wire.workers import ChannelError, FromWorker, Reassembler, ToWorker, frame, to_worker

_READ_BYTES = 64 * 1024


class Channel:
    """Owns `sock`, a connected stream socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)  # whoever made it may have left it otherwise
        self._sock = sock
        self._sending = threading.Lock()

    def send(self, *messages: FromWorker) -> None:
        """Send messages together, so that the peer wakes up once for all that one step of an engine says.

        Raises `OSError` when the peer is gone, `ChannelError`, with nothing sent, when one is too large.
        """
        data = b"".join(map(frame, messages))
        with self._sending:
            self._sock.sendall(data)

    def receive(self) -> Iterator[ToWorker]:
        """Messages as they come, until the peer is gone. Raises `ChannelError` at anything that is no message."""
        inbox = Reassembler()
        while data := self._read():
            for body in inbox.feed(data):
                try:
                    yield to_worker.decode(body)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    raise ChannelError(f"cannot read a message of {len(body)} bytes: {error}") from None

    def _read(self) -> bytes:
        try:
            return self._sock.recv(_READ_BYTES)
        except ConnectionResetError:  # the peer went away with messages of ours unread
            return b""
