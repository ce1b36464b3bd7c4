"""One connection's talk with the daemon, without any I/O: frames in, frames out, calls in between.

A client opens a call, sends the frames it is given, feeds what it receives, and takes each call's items in
order. This module numbers requests, routes and decodes answers by the catalogue, and keeps the credit of
streams. It knows no socket, no clock and no thread: `channel` and `aio` do. Invariant: a call ends exactly
once, with a reply or an error; what arrives for a call that ended is dropped.
"""

from collections import deque
from itertools import count
from typing import NamedTuple

import msgspec

from h2qctl.errors import H2qError
from h2qd.wire import messages as m
from h2qd.wire.catalogue import CATALOGUE, Command
from h2qd.wire.frames import Kind, Request, WireError, decode_body, encode, request_frames, split_response
from h2qd.wire.limits import CHUNK_WINDOW_DEFAULT, CHUNK_WINDOW_MAX, DEADLINE_MS_MAX, PROTOCOL_VERSION

REPLY_BYTES_MAX = 16 * 1024 * 1024
"""The largest body taken from a daemon: an answer of the most tokens allowed fits."""

INBOX_MAX = CHUNK_WINDOW_MAX
"""Chunks of one call that may wait to be taken; a daemon that keeps to its window never comes near."""


class Item(NamedTuple):
    """One thing said about a call: its kind, its meaning, and the undecoded body for those who pass it on."""

    kind: Kind
    value: m.Say
    raw: bytes


class Call:
    """One request in flight, and what was said about it but not yet taken."""

    __slots__ = ("_inbox", "_news", "broken", "command", "consumed", "ended", "given_up", "id", "window")

    def __init__(self, number: int, command: Command, window: int) -> None:
        self.id = number
        self.command = command
        self.window = window
        self.consumed = 0
        self.ended = False
        self.given_up = False
        self.broken = False
        self._inbox: deque[Item] = deque()
        self._news: Item | None = None

    def take(self) -> Item | None:
        """The next item, or None when nothing waits. Of several reports of progress only the newest is kept."""
        if self._news is not None:
            news, self._news = self._news, None
            return news
        return self._inbox.popleft() if self._inbox else None

    def put(self, item: Item) -> None:
        """Add `item` behind the others. Raises `WireError` (malformed) when too many wait."""
        if item.kind is Kind.PROGRESS:
            self._news = item
            return
        if len(self._inbox) >= INBOX_MAX and item.kind is Kind.CHUNK:
            raise WireError(
                "malformed", f"cannot take more chunks: {INBOX_MAX} wait, and the window is {self.window}"
            )
        self._inbox.append(item)
        self.ended = item.kind in (Kind.REPLY, Kind.ERROR)

    def drop(self) -> None:
        """Forget what waits: nobody will take it."""
        self._inbox.clear()
        self._news = None


class Conversation:
    """All calls of one connection, and whether anything was `heard` on it. Its owner keeps threads apart."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._calls: dict[int, Call] = {}
        self.heard = False

    def calls(self) -> list[Call]:
        """The calls whose end has not been heard, also those given up."""
        return list(self._calls.values())

    def ask(self, op: str, body: m.Ask, timeout_s: float | None = None) -> tuple[Call, list[bytes]]:
        """A new call, and the frames that start it. Raises `H2qError` (too_large, invalid_request)."""
        command = CATALOGUE[op]
        window = body.window if isinstance(body, m.Generation) else CHUNK_WINDOW_DEFAULT
        call = Call(next(self._numbers), command, window)
        deadline_ms = None if timeout_s is None else min(max(1, round(timeout_s * 1000)), DEADLINE_MS_MAX)
        try:
            frames = request_frames(Request(PROTOCOL_VERSION, call.id, op, deadline_ms), body)
        except WireError as fault:
            raise H2qError(fault.code, fault.message) from None
        if len(frames[1]) > command.bytes_max:
            raise H2qError("too_large", f"cannot send {len(frames[1])} bytes to {op}: at most {command.bytes_max}")
        self._calls[call.id] = call
        return call, frames

    def consumed(self, call: Call) -> list[bytes] | None:
        """Note that a chunk of `call` was used up; the frames that grant new credit, each half window."""
        call.consumed += 1
        if call.ended or call.consumed < max(1, call.window // 2):
            return None
        credit, call.consumed = m.Credit(call.id, call.consumed), 0
        return self._say("stream.credit", credit)

    def give_up(self, call: Call) -> list[bytes] | None:
        """Nobody waits for `call` any more: the frames that cancel it, or None when it has ended already."""
        call.drop()
        if call.given_up or (call.ended and not call.broken):
            return None
        call.given_up = True
        return self._say("request.cancel", m.Cancel(id=call.id))

    def forget(self, call: Call) -> None:
        """Do not expect the end of `call` any more."""
        self._calls.pop(call.id, None)

    def fail(self, code: str, message: str, hint: str = "") -> None:
        """End every open call with this error of the client's own."""
        for call in self.calls():
            self._break(call, code, message, hint)

    def feed(self, frames: list[bytes]) -> Call | None:
        """Take one message of the daemon; the call that it was about. One that is no message ends every call."""
        try:
            envelope, body = split_response(frames)
        except WireError as fault:
            self.fail("malformed", f"the daemon said something that is no message: {fault.message}")
            return None
        self.heard = True
        call = self._calls.get(envelope.id)
        if call is None:
            return None
        if envelope.v != PROTOCOL_VERSION:
            text = f"cannot understand the daemon: it speaks protocol {envelope.v}, this client {PROTOCOL_VERSION}"
            self._break(call, "unsupported_version", text)
            return call
        try:
            self._accept(call, envelope.kind, body)
        except WireError as fault:
            text = f"cannot understand the daemon's {envelope.kind} to {call.command.op}: {fault.message}"
            self._break(call, "malformed", text)
        return call

    def _accept(self, call: Call, kind: Kind, body: bytes) -> None:
        """Decode `body` as the catalogue says and put it into the call's inbox. Raises `WireError`."""
        shapes: dict[Kind, type[m.Say] | None] = {
            Kind.REPLY: call.command.reply,
            Kind.ERROR: m.ErrorReply,
            Kind.CHUNK: call.command.chunk,
            Kind.PROGRESS: m.Progress,
        }
        shape = shapes[kind]
        if shape is None:
            raise WireError("malformed", f"this operation has no {kind}")
        value = decode_body(body, shape, REPLY_BYTES_MAX)
        if not call.given_up or kind in (Kind.REPLY, Kind.ERROR):
            call.put(Item(kind, value, body))
        if call.ended:
            del self._calls[call.id]

    def _break(self, call: Call, code: str, message: str, hint: str = "") -> None:
        """End `call` here, although the daemon may still work on it."""
        del self._calls[call.id]
        call.broken = True
        reply = H2qError(code, message, hint).reply
        call.put(Item(Kind.ERROR, reply, encode(reply)))

    def _say(self, op: str, body: msgspec.Struct) -> list[bytes]:
        """Frames of a request whose answer nobody waits for."""
        return request_frames(Request(PROTOCOL_VERSION, next(self._numbers), op), body)
