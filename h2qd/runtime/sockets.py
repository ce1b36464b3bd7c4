"""ZeroMQ sockets on an asyncio loop by callbacks, without a task or future per message.

libzmq's file descriptor is edge-triggered: it says "look again", once, and any send or receive may swallow that
signal. So a socket is drained until it is empty, a full turn is given back to the loop after `_BATCH` messages,
and after every send the socket itself is asked whether there is something to read. Used by `server` and `zap`.
"""

import asyncio
from collections.abc import Callable

import zmq

_POLLIN = int(zmq.POLLIN)  # the flag itself would make each test of it an enum operation

_BATCH = 64
"""Messages taken in one go before other events of the loop have their turn."""


class Readable:
    """Calls `take` until it says that nothing is left, whenever the socket may have something."""

    def __init__(self, socket: zmq.Socket[bytes], take: Callable[[], bool]) -> None:
        self._socket = socket
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._fd = int(socket.getsockopt(zmq.FD))
        self._scheduled = False
        self._closed = False
        self._loop.add_reader(self._fd, self._drain)
        self.look_again()

    def look_again(self) -> None:
        """Drain soon if there is something; due after each send on the socket, above all after one that failed."""
        if not self._scheduled and not self._closed and self._has_message():
            self._scheduled = True
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        self._scheduled = False
        try:
            for _ in range(_BATCH):
                if self._closed or not self._has_message() or not self._take():
                    return
        except BaseException:
            self.look_again()  # the signal for what is left was swallowed
            raise
        self.look_again()

    def _has_message(self) -> bool:
        """Asking costs a third of a receive that finds nothing and raises."""
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & _POLLIN)

    def close(self) -> None:
        """Stop looking. The socket itself stays open."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._fd)
