"""The door: it lets nobody else in while there are too many connections, and opens again when there is room.

libzmq 4.3.5 ends the whole process when it accepts an ipc connection and no descriptor is left (ipc_listener.cpp
takes EMFILE for impossible), and each connection costs it tens of kilobytes. It has no limit of its own, and would
drop the connections that stand if it were told to stop listening. So the socket's file is moved aside instead: who
comes now is told that nobody is there, who is in stays in. How full it is, the kernel says for nothing: a new
descriptor gets the lowest number that is free. Used by `server`.
"""

import os
import resource
from pathlib import Path

import zmq

from h2qd.logs import get_logger
from h2qd.runtime.sockets import Readable

log = get_logger()

_DESCRIPTORS_MAX = 2048
"""At this number the door closes; far below what the daemon may open, because libzmq accepts faster than we look."""

_SHARE_MAX = 4
"""Where few descriptors are allowed: the door closes at this part of them."""


class Door:
    """Guards the file at `path`, on which `listener` listens."""

    def __init__(self, listener: zmq.Socket[bytes], path: Path) -> None:
        self._path = path
        self._aside = path.with_name(path.name + ".full")
        self._listener = listener
        self._events = listener.get_monitor_socket(zmq.EVENT_ACCEPTED)
        self._readable = Readable(self._events, self._take)
        self.closed = False

    def _take(self) -> bool:
        """Look at one accepted connection's descriptor."""
        try:
            self._events.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return False
        if not self.closed and _lowest_free() >= _closes_at():
            self._move(self._path, self._aside)
            log.error("door.closed", descriptors=_closes_at(), why="too many connections")
            self.closed = True
        return True

    def look(self) -> None:
        """Open again if enough connections have gone. Called once a second."""
        if self.closed and _lowest_free() < _closes_at() * 3 // 4:
            self._move(self._aside, self._path)
            log.info("door.opened")
            self.closed = False

    def _move(self, source: Path, target: Path) -> None:
        try:
            source.rename(target)
        except OSError as error:  # the folder is gone or read-only; the limits of libzmq are what is left
            log.error("door.stuck", error=str(error))  # noqa: TRY400 - expected

    def close(self) -> None:
        """Take the file away, wherever it is."""
        self._readable.close()
        self._listener.disable_monitor()
        self._events.close(0)
        self._path.unlink(missing_ok=True)
        self._aside.unlink(missing_ok=True)


def _lowest_free() -> int:
    """The number that the next descriptor would get; the limit when none is left."""
    try:
        descriptor = os.dup(0)
    except OSError:
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    os.close(descriptor)
    return descriptor


def _closes_at() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _DESCRIPTORS_MAX if soft == resource.RLIM_INFINITY else min(_DESCRIPTORS_MAX, soft // _SHARE_MAX)
