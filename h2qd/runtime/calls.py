"""Requests in flight: from the envelope that opened a call to the one reply or error that ends it.

Streams flow by credit: a chunk is sent only while the client's window is open. Every call that lasts gets a sign
of life at least each `HEARTBEAT_MS`; that is also how a client that went away is found. Decides nothing about
models. Invariant: each call ends exactly once, and its id is free again after that.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from msgspec import Struct

from h2qd.core.records import Fault
from h2qd.logs import get_logger
from h2qd.runtime.server import Client, Server
from h2qd.runtime.streams import Outlet, TextOutlet
from h2qd.wire import messages as m
from h2qd.wire.codes import CODES
from h2qd.wire.frames import Kind, Request, WireError, response_frames
from h2qd.wire.limits import HEARTBEAT_MS, REQUESTS_PER_CLIENT_MAX
from h2qd.wire.messages import ErrorReply, Progress
from h2qd.wire.workers import Result, Task

log = get_logger()

_QUIET = ("daemon.", "session.", "model.ps", "model.list", "model.show", "model.explain", "model.plan", "events.")
"""Operations that only look: their log lines are for debugging."""


@dataclass(slots=True, eq=False)
class Call:
    """One request in flight. `number` is unique in this daemon's life; times are monotonic seconds.

    `name` is what people call it: `ps` shows it, `cancel` takes it, the log carries it. It stays while the number
    changes, which it does when another model is asked: `fallbacks` are those left to ask, `until` when all must end,
    and this one was `late` if it had not begun to answer in time.
    A request that a worker serves carries its `order` from the start, and the worker's `result` at the end. A part of
    another call has `on_end`, which hears its reply or error in the client's place. `alarm` rings at its
    deadline, or where another model is to be asked.
    """

    number: int
    name: str
    client: Client
    message_id: int
    op: str
    arrived: float
    model: str | None = None
    priority: m.Priority = "normal"
    outlet: Outlet | None = None
    streaming: bool = False
    credit: int = 0
    deadline: float | None = None
    alarm: asyncio.TimerHandle | None = None
    until: float | None = None
    late: bool = False
    fallbacks: tuple[str, ...] = ()
    asked: str = ""
    progress: Progress | None = None
    spoke_at: float = 0.0
    ended: bool = False
    order: Task | None = None
    result: Result | None = None
    granted: float = 0.0
    prefilled: float = 0.0
    on_end: Callable[[Struct], None] | None = None
    notes: dict[str, object] = field(default_factory=dict)

    def silence(self) -> None:
        """Nothing is to happen at a time of its own any more."""
        if self.alarm is not None:
            self.alarm.cancel()
            self.alarm = None

    @property
    def text(self) -> TextOutlet | None:
        """The text of an answer in the making."""
        return self.outlet if isinstance(self.outlet, TextOutlet) else None


class Calls:
    """The table of calls. `on_gone` is told of each call whose client went away."""

    def __init__(self, on_gone: Callable[[Call], None]) -> None:
        self._on_gone = on_gone
        self._calls: dict[int, Call] = {}
        self._by_id: dict[int, dict[int, Call]] = {}
        self._numbers = 0
        self.server: Server | None = None

    def __iter__(self) -> Iterator[Call]:
        return iter(list(self._calls.values()))

    def __len__(self) -> int:
        return len(self._calls)

    def get(self, number: int) -> Call | None:
        """The call of that number, if it is still in flight."""
        return self._calls.get(number)

    def of_client(self, client: Client, message_id: int) -> Call | None:
        """The client's call of that envelope id, if it is still in flight."""
        return self._by_id.get(client.number, {}).get(message_id)

    def named(self, name: str) -> Call | None:
        """The call that `ps` shows under `name`."""
        return next((call for call in self._calls.values() if call.name == name), None)

    def idle(self, client: Client) -> bool:
        """Whether the client has nothing in flight."""
        return client.number not in self._by_id

    def open(self, client: Client, request: Request) -> Call:
        """A new call. Raises `WireError`: duplicate_id, too_many_requests."""
        mine = self._by_id.get(client.number, {})
        if request.id in mine:
            raise WireError("duplicate_id", f"cannot take request {request.id}: that id is in flight", request.id)
        if len(mine) >= REQUESTS_PER_CLIENT_MAX:
            text = f"cannot take more than {REQUESTS_PER_CLIENT_MAX} requests of one client at a time"
            raise WireError("too_many_requests", text, request.id)
        call = self._new(client, request.id, request.op)
        self._by_id.setdefault(client.number, {})[request.id] = call
        return call

    def part(self, whole: Call, place: int, op: str, on_end: Callable[[Struct], None]) -> Call:
        """A call that a call makes on its own behalf: `on_end` hears what it ends with, and its client nothing."""
        call = self._new(whole.client, whole.message_id, op)
        call.name, call.on_end = f"{whole.name}.{place}", on_end
        return call

    def _new(self, client: Client, message_id: int, op: str) -> Call:
        self._numbers += 1
        now = time.monotonic()
        call = Call(self._numbers, f"r{self._numbers}", client, message_id, op, now, spoke_at=now)
        self._calls[call.number] = call
        return call

    def renumber(self, call: Call) -> None:
        """Give a call a fresh number: for the core it is another request, which hears nothing of the one before."""
        del self._calls[call.number]
        self._numbers += 1
        call.number = self._numbers
        self._calls[call.number] = call

    # --- saying ---------------------------------------------------------------------------------

    def reply(self, call: Call, body: Struct) -> None:
        """End the call with its answer."""
        self._end(call, Kind.REPLY, body, "ok")

    def error(self, call: Call, fault: Fault) -> None:
        """End the call with an error."""
        code = CODES.get(fault.code) or CODES["internal"]
        after = None if fault.retry_after_s is None else round(fault.retry_after_s * 1000)
        body = ErrorReply(
            code=code.name,
            message=fault.message,
            hint=fault.fix or code.hint,
            because=list(fault.because),
            retryable=code.retryable,
            retry_after_ms=after,
            request=call.name,
        )
        self._end(call, Kind.ERROR, body, code.name)

    def _end(self, call: Call, kind: Kind, body: Struct, outcome: str) -> None:
        if call.ended:
            raise AssertionError(f"request {call.name} was answered twice")
        if call.on_end is not None:
            self._close(call, outcome)
            call.on_end(body)
            return
        frames = response_frames(call.message_id, kind, body)  # if this cannot be encoded, another answer can
        self._close(call, outcome)  # before sending: a client found gone by this very send has one call less
        if self.server is not None:
            self.server.send(call.client, frames)

    def _close(self, call: Call, outcome: str) -> None:
        call.ended = True
        call.silence()
        del self._calls[call.number]
        if call.on_end is None:
            mine = self._by_id[call.client.number]
            del mine[call.message_id]
            if not mine:
                del self._by_id[call.client.number]
        level = log.debug if call.op.startswith(_QUIET) else log.info
        level(
            "request.ended",
            request=call.name,
            op=call.op,
            model=call.model,
            outcome=outcome,
            ms=round((time.monotonic() - call.arrived) * 1000, 1),
            uid=call.client.uid,
            pid=call.client.pid,
            **call.notes,
        )

    def pump(self, call: Call) -> None:
        """Send as many chunks as there are and the client's window allows."""
        while call.streaming and call.credit > 0 and call.outlet is not None and not call.ended:
            body = call.outlet.take()
            if body is None:
                return
            call.credit -= 1
            self._send(call, Kind.CHUNK, body)

    def tell_progress(self, call: Call, progress: Progress) -> None:
        """Say how far a call is, if that is news or a sign of life is due."""
        news = call.progress is None or (progress.phase, progress.position, progress.fraction) != (
            call.progress.phase,
            call.progress.position,
            call.progress.fraction,
        )
        if news or time.monotonic() - call.spoke_at >= HEARTBEAT_MS / 2000 * 0.9:
            call.progress = progress
            self._send(call, Kind.PROGRESS, progress)

    def _send(self, call: Call, kind: Kind, body: Struct) -> None:
        call.spoke_at = time.monotonic()
        if self.server is not None and call.on_end is None:
            self.server.send(call.client, response_frames(call.message_id, kind, body))

    # --- clients that go --------------------------------------------------------------------------

    def client_gone(self, client: Client) -> None:
        """Report the client's calls, which nobody will hear of any more."""
        for call in list(self._by_id.get(client.number, {}).values()):
            self._on_gone(call)
