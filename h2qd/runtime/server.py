"""The control socket: frames in and out of one ROUTER, and who is at the other end.

It knows nothing of commands. A message goes to `on_message`; what cannot be read is answered here. `send`
tells whether the client is still there: a client that is gone, or that does not read what it asked for until its
queue is full, is reported to `on_gone` once. What is queued for it stays queued, at most `_SEND_QUEUE` messages,
until it reads or hangs up: libzmq knows no other way to be rid of it.
"""

import os
import socket as sockets
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import zmq

from h2qd.logs import get_logger
from h2qd.runtime.door import Door
from h2qd.runtime.sockets import Readable
from h2qd.runtime.zap import Doorkeeper, peer_of
from h2qd.wire.codes import CODES
from h2qd.wire.frames import Kind, Request, WireError, response_frames, split_request
from h2qd.wire.limits import FRAME_BYTES_MAX
from h2qd.wire.messages import ErrorReply

log = get_logger()

_RECEIVE_QUEUE = 16
_SEND_QUEUE = 2048
_HANDSHAKE_MS = 3000
_BACKLOG = 128


@dataclass(frozen=True, slots=True)
class Client:
    """One connection. `number` is never reused, `identity` is the router's name for it."""

    number: int
    identity: bytes
    uid: int
    pid: int


class SocketInUseError(Exception):
    """Something answers on the socket's path already, or stands there that is not a dead daemon's socket."""


class Server:
    """The ROUTER socket of the daemon."""

    def __init__(
        self,
        path: Path,
        mode: int,
        admits: Callable[[int], bool],
        on_message: Callable[[Client, Request, bytes], None],
        on_gone: Callable[[Client], None],
    ) -> None:
        self.path = path
        self._on_message = on_message
        self._on_gone = on_gone
        self._clients: dict[bytes, Client] = {}
        self._numbers = 0
        _make_way(path)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._doorkeeper = Doorkeeper(self._context, admits)
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 200
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)
        self._socket.setsockopt(zmq.RCVHWM, _RECEIVE_QUEUE)
        self._socket.setsockopt(zmq.SNDHWM, _SEND_QUEUE)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        self._socket.setsockopt(zmq.BACKLOG, _BACKLOG)
        self._socket.setsockopt(zmq.ZAP_DOMAIN, b"h2qd")
        before = os.umask(0o177)  # nobody gets in between bind and chmod
        try:
            self._socket.bind(f"ipc://{path}")
        finally:
            os.umask(before)
        path.chmod(mode)
        self._door = Door(self._socket, path)
        self._readable = Readable(self._socket, self._take)

    def send(self, client: Client, frames: list[bytes]) -> bool:
        """Queue a message. False when the client is gone or does not read; `on_gone` has been called then."""
        if self._clients.get(client.identity) is not client:
            return False
        try:
            self._socket.send_multipart([client.identity, *frames], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            self._forget(client, "gone" if error.errno == zmq.EHOSTUNREACH else "does not read")
            return False
        finally:
            self._readable.look_again()
        return True

    def _take(self) -> bool:
        try:
            first = self._socket.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        frames = self._socket.recv_multipart(zmq.NOBLOCK) if first.more else []
        client = self._client(first)
        if client is not None:
            self._read(client, frames)
        return True

    def _client(self, first: zmq.Frame) -> Client | None:
        """Who sent a message. An identity that came back with another peer is another client."""
        identity = first.bytes
        peer = peer_of(str(first.get("Peer-Address")))
        if peer is None:
            return None
        known = self._clients.get(identity)
        if known is not None and (known.uid, known.pid) == peer:
            return known
        if known is not None:
            self._forget(known, "replaced")
        self._numbers += 1
        client = self._clients[identity] = Client(self._numbers, identity, *peer)
        return client

    def _read(self, client: Client, frames: list[bytes]) -> None:
        try:
            request, body = split_request(frames)
        except WireError as error:
            self.refuse(client, error.message_id or 0, error)
            return
        self._on_message(client, request, body)

    def refuse(self, client: Client, message_id: int, error: WireError) -> None:
        """Answer what never became a request. Id 0 stands for an id that could not be read."""
        code = CODES[error.code]
        body = ErrorReply(code=code.name, message=error.message, hint=code.hint, retryable=code.retryable)
        self.send(client, response_frames(message_id, Kind.ERROR, body))

    def _forget(self, client: Client, why: str) -> None:
        if self._clients.get(client.identity) is client:
            del self._clients[client.identity]
        log.debug("client.gone", client=client.number, uid=client.uid, pid=client.pid, why=why)
        self._on_gone(client)

    def sweep(self, idle: Callable[[Client], bool]) -> None:
        """Forget clients that have nothing in flight: they are met again with their next message. Once a second."""
        self._door.look()
        for client in [c for c in self._clients.values() if idle(c)]:
            del self._clients[client.identity]

    def close(self) -> None:
        """Send what is queued, briefly, and take the socket off the file system."""
        self._readable.close()
        self._door.close()
        self._socket.close()
        self._doorkeeper.close()
        self._context.term()


def _make_way(path: Path) -> None:
    """Make the folder, and take a dead daemon's socket away. Raises `SocketInUseError` if one listens."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    probe = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
    try:
        probe.connect(str(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise SocketInUseError("there is a file that is no socket") from None
        path.unlink(missing_ok=True)
        return
    finally:
        probe.close()
    raise SocketInUseError("somebody does already")
