"""Admission of peers: the ZAP handler that lets a connection in by its user id, which the kernel vouches for.

A refused peer is cut before libzmq takes a frame from it, so it can fill no buffer. What an admitted peer may do
is decided later, command by command, in `commands`. See RFC 27 (ZAP) of the ZeroMQ project.
"""

import contextlib
import time
from collections.abc import Callable

import zmq

from h2qd.logs import get_logger
from h2qd.runtime.sockets import Readable

log = get_logger()

_FIELDS_MIN = 6
_TELL_S = 1.0


class Doorkeeper:
    """Answers ZAP requests of one context. `admits` takes a user id."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], admits: Callable[[int], bool]) -> None:
        self._admits = admits
        self._refused = 0
        self._told_at = -_TELL_S
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind("inproc://zeromq.zap.01")
        self._readable = Readable(self._socket, self._take)

    def _take(self) -> bool:
        try:
            fields = self._socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return False
        request_id = fields[1] if len(fields) > 1 else b""
        peer = peer_of(fields[3].decode("ascii", "replace")) if len(fields) >= _FIELDS_MIN else None
        admitted = peer is not None and self._admits(peer[0])
        if not admitted:
            self._tell_refused(peer)
        status = [b"200", b"admitted"] if admitted else [b"400", b"this user is not admitted"]
        with contextlib.suppress(zmq.ZMQError):  # the context is being closed
            self._socket.send_multipart([b"1.0", request_id, *status, b"", b""], zmq.NOBLOCK)
        self._readable.look_again()
        return True

    def _tell_refused(self, peer: tuple[int, int] | None) -> None:
        """A line a second at most: who knocks without end must not fill the log."""
        self._refused += 1
        if (now := time.monotonic()) - self._told_at >= _TELL_S:
            uid, pid = peer or (None, None)
            log.warning("peer.refused", uid=uid, pid=pid, times=self._refused)
            self._told_at, self._refused = now, 0

    def close(self) -> None:
        """Stop answering; new connections are no longer admitted."""
        self._readable.close()
        self._socket.close(0)


def peer_of(address: str) -> tuple[int, int] | None:
    """The (user id, process id) in libzmq's peer address of an ipc connection, "localhost:uid:gid:pid"."""
    parts = address.rsplit(":", 3)
    try:
        uid, _, pid = (int(part) for part in parts[1:])
    except ValueError:
        return None
    return uid, pid
