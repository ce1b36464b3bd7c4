"""One blocking connection: a DEALER socket, what libzmq says about it, and the conversation over it.

A channel serves one thread; another thread may only `cancel` and `close`. Both find it idle and act at once,
or find it waiting and leave word, which the waiting thread reads within `_LOOK_S`. A channel lives as long as
its connection: when the daemon goes, every open call ends with `unreachable` at once (not after a silence),
and what was not sent is thrown away with the socket, so nothing is carried out later by the next daemon.
"""

import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import zmq

from h2qctl import address
from h2qctl.conversation import REPLY_BYTES_MAX, Call, Conversation, Item
from h2qctl.errors import H2qError
from h2qd.wire import messages as m
from h2qd.wire.limits import CHUNK_WINDOW_MAX

_LOOK_S = 0.25
"""The longest sleep on the socket: within it a cancel or close from another thread is seen."""

GRACE_S = 0.5
"""How much longer than the request's own deadline the daemon's word about it is awaited."""

SETTLE_S = 1.0
"""How long a closing client waits for the ends of the calls that it cancelled."""

_POLLIN = int(zmq.POLLIN)
_REFUSED = zmq.EVENT_HANDSHAKE_FAILED_AUTH
LOSSES = (
    _REFUSED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)
"""What libzmq can report that ends a connection."""

_LAST_WORDS_MS = 100
"""How long a closed socket may go on to deliver the cancels of what was still in flight."""

_MESSAGES_PER_LOOK_MAX = 2 * CHUNK_WINDOW_MAX
"""All that a connection can hold, and a bound should a peer send without end."""

_EVENT = struct.Struct("=HI")


def tune(connection: zmq.Socket[Any]) -> None:
    """The options of every client socket: bounded frames, room for all that a paused reader may be sent."""
    connection.setsockopt(zmq.LINGER, 0)
    connection.setsockopt(zmq.MAXMSGSIZE, REPLY_BYTES_MAX)
    connection.setsockopt(zmq.RCVHWM, _MESSAGES_PER_LOOK_MAX)


def loss(event: bytes) -> tuple[str, str]:
    """The code and text for a report of the socket's monitor, one of `LOSSES`."""
    kind, _ = _EVENT.unpack(event[: _EVENT.size])
    if kind == _REFUSED:
        return "not_permitted", "cannot talk to the daemon: it does not admit this user"
    if kind == zmq.EVENT_DISCONNECTED:
        return "unreachable", "the daemon closed the connection: it stopped, died, or was restarted"
    return "unreachable", "cannot talk to what listens on the socket: it is not h2qd"


def silent(path: str, silence_s: float, *, heard: bool) -> H2qError:
    """The error for a daemon that said nothing for `silence_s`: gone, stuck since it was `heard`, or no daemon."""
    try:
        address.probe(path)
    except H2qError as error:
        return error
    if heard:
        return H2qError("timeout", f"cannot get an answer: the daemon said nothing more for {silence_s:g} s")
    return H2qError(
        "unreachable", f"cannot get an answer: the daemon takes connections but said nothing for {silence_s:g} s"
    )


class Channel:
    """A connection to the daemon at `path`. Raises `H2qError` when nobody listens there."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], path: str, silence_s: float) -> None:
        self.closed = True
        self._close_wanted = False
        self._lock = threading.Lock()
        self._unwanted: deque[Call] = deque()
        address.probe(path)
        self._path = path
        self._silence_s = silence_s
        self._talk = Conversation()
        self._socket = context.socket(zmq.DEALER)
        self.closed = False
        tune(self._socket)
        self._monitor = self._socket.get_monitor_socket(LOSSES)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._socket.connect(f"ipc://{path}")

    def open(self, op: str, body: m.Ask, timeout_s: float | None) -> tuple[Call, float | None]:
        """Start a call; with it the monotonic time at which to stop waiting, if it has a deadline."""
        with self._held():
            self._check_open()
            call, frames = self._talk.ask(op, body, timeout_s)
            self._socket.send_multipart(frames)
        return call, None if timeout_s is None else monotonic() + timeout_s + GRACE_S

    def alive(self) -> bool:
        """Whether the connection still stands, as far as has been heard."""
        if not self.closed:
            self._look(0)
        return not self.closed

    def wait(self, call: Call, until: float | None) -> Item:
        """The next item of `call`. Raises `H2qError` (timeout, unreachable) when none comes."""
        quiet_until = monotonic() + self._silence_s
        while (item := call.take()) is None:
            now = monotonic()
            if until is not None and now >= until:
                raise H2qError("timeout", "cannot get an answer: the time given for it is over", "raise the timeout")
            if now >= quiet_until:
                self._talk.forget(call)
                raise silent(self._path, self._silence_s, heard=self._talk.heard)
            limits = [_LOOK_S, quiet_until - now] + ([until - now] if until is not None else [])
            if call in self._look(min(limits)):
                quiet_until = monotonic() + self._silence_s
        return item

    def consumed(self, call: Call) -> None:
        """A chunk of `call` was used up: let the daemon send more when it is time to."""
        with self._held():
            if not self.closed and (frames := self._talk.consumed(call)):
                self._socket.send_multipart(frames)

    def cancel(self, call: Call) -> None:
        """Give `call` up and tell the daemon, from whichever thread."""
        self._unwanted.append(call)
        self._tidy()

    def settle(self, patience_s: float) -> None:
        """Give up all calls, and wait, at most this long, until they have ended."""
        self._unwanted.extend(self._talk.calls())
        until = monotonic() + patience_s
        while not self.closed and self._talk.calls() and (left := until - monotonic()) > 0:
            self._look(min(left, _LOOK_S))

    def close(self) -> None:
        """End the connection, from whichever thread; one that waits on it lets go within `_LOOK_S`: `unreachable`."""
        self._close_wanted = True
        with self._lock:
            self._leave()

    def __del__(self) -> None:
        self._close_wanted = True
        self._tidy()

    def _look(self, seconds: float) -> list[Call]:
        """Sleep until something is heard, at most `seconds`; the calls that it was about."""
        with self._held():
            self._check_open()
            self._tell_unwanted()
            ready = dict(self._poller.poll(max(0, round(seconds * 1000))))
            heard = self._drain()
            if self._monitor in ready:
                report = self._monitor.recv_multipart()[0]
                heard += self._drain()
                self._talk.fail(*loss(report))
                self._shut()
            return heard

    def _drain(self) -> list[Call]:
        """Feed all that has arrived."""
        heard: list[Call] = []
        for _ in range(_MESSAGES_PER_LOOK_MAX):
            if not int(self._socket.getsockopt(zmq.EVENTS)) & _POLLIN:  # cheaper than to be refused
                break
            call = self._talk.feed(self._socket.recv_multipart(zmq.NOBLOCK))
            if call is not None:
                heard.append(call)
        return heard

    @contextmanager
    def _held(self) -> Iterator[None]:
        """The lock, and afterwards whatever others left word of while it was held."""
        try:
            with self._lock:
                yield
        finally:
            self._tidy()

    def _tidy(self) -> None:
        """Do what other threads left word of, unless the lock's holder will: it looks again after letting go."""
        while (self._unwanted or (self._close_wanted and not self.closed)) and self._lock.acquire(blocking=False):
            try:
                self._tell_unwanted()
                if self._close_wanted:
                    self._leave()
            finally:
                self._lock.release()

    def _tell_unwanted(self) -> None:
        while self._unwanted:
            frames = self._talk.give_up(self._unwanted.popleft())
            if frames is not None and not self.closed:
                self._socket.send_multipart(frames)

    def _leave(self) -> None:
        """Cancel what is open, and hang up."""
        self._unwanted.extend(self._talk.calls())
        self._tell_unwanted()
        self._shut(_LAST_WORDS_MS)

    def _check_open(self) -> None:
        if self._close_wanted or self.closed:
            raise H2qError("unreachable", "cannot go on: this client was closed", "open a new client")

    def _shut(self, linger_ms: int = 0) -> None:
        if not self.closed:
            self.closed = True
            self._socket.disable_monitor()
            self._monitor.close(0)
            self._socket.close(linger_ms)
