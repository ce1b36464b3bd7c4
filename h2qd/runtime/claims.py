"""Claims: what asks for a model becomes a ticket for the core, or asks the next model where one cannot answer.

A name is what its user means by it: the active model for none, a server's model in the server's letters. A chain of
`fallback` is followed while nothing was said. Called by `commands` and, where a request fails later, by `perform`.
Decides nothing about memory. Invariant: a call is one ticket at a time, numbered anew with each model that is asked.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypedDict, Unpack

import msgspec

from h2qd.core import breakers
from h2qd.core.admission import no_such_model
from h2qd.core.events import RequestAbandoned, RequestArrived
from h2qd.core.records import Fault, Ticket, Want
from h2qd.logs import get_logger
from h2qd.runtime import orders
from h2qd.runtime.adapters import Adapters
from h2qd.runtime.calls import Call, Calls
from h2qd.runtime.refusal import Refusal
from h2qd.runtime.remotes import Remotes
from h2qd.runtime.streams import TextOutlet
from h2qd.runtime.supervisor import Supervisor
from h2qd.store.registry import Manifest
from h2qd.wire import messages as m
from h2qd.wire.abilities import beyond_text
from h2qd.wire.names import shown
from h2qd.wire.workers import Task

log = get_logger()

FALLBACK_CODES = frozenset(
    {
        "no_fit",
        "pinned",
        "memory_pressure",
        "load_failed",
        "load_cancelled",
        "model_failed",
        "file_not_found",
        "invalid_model_file",
        "queue_full",
        "generation_failed",
        "worker_crashed",
        "worker_oom",
        "worker_hung",
        "unloaded",
        "remote_failed",
        "remote_unreachable",
    }
)
"""What another model may help with: not the request is at fault, but what was to answer it."""


class Wishes(TypedDict, total=False):
    """The fields of a ticket that not every command sets."""

    ctx: int
    kv_type: str
    force: bool
    reset: bool
    exact: bool
    activate: bool
    priority: int


class Claims:
    """Makes tickets. `tell_progress` tells a call where it stands.

    `fallbacks`: who answers instead of a model; `fallback_after_s`: how long that may take to begin first.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        calls: Calls,
        manifests: Mapping[str, Manifest],
        missing: Mapping[str, m.ModelRow],
        remotes: Remotes,
        adapters: Adapters,
        deadline_s: float,
        fallbacks: Callable[[str], tuple[str, ...]],
        fallback_after_s: Callable[[str], float | None],
        tell_progress: Callable[[Call], None],
    ) -> None:
        self._supervisor = supervisor
        self._calls = calls
        self._manifests = manifests
        self._missing = missing
        self._remotes = remotes
        self._adapters = adapters
        self._deadline_s = deadline_s
        self._fallbacks = fallbacks
        self._fallback_after_s = fallback_after_s
        self._tell_progress = tell_progress

    def known(self, name: str) -> str:
        """What is registered under the name, or is meant by it. Raises `Refusal`."""
        meant = self._remotes.called(name)
        if meant in self._supervisor.state.models:
            return meant
        raise Refusal(self._unknown(name))

    def _unknown(self, name: str) -> Fault:
        if (row := self._missing.get(name)) is not None:
            return Fault(row.code, f"cannot use {name}: {row.reason}")
        server = name.partition("/")[0]
        if (row := self._missing.get(f"{server}/*")) is not None:
            wait_s = breakers.patience_s(self._supervisor.state, server, now())
            return Fault("remote_unreachable", f"cannot use {shown(name)}: {row.reason}", retry_after_s=wait_s)
        return replace(no_such_model(self._supervisor.state, shown(name)), fix=self._remotes.how_to_get(name))

    def claim(self, call: Call, model: str | None, want: Want, **wishes: Unpack[Wishes]) -> None:
        """Make the call a ticket for a model, by default the active one. Raises `Refusal`."""
        name = self._remotes.called(model or self._supervisor.state.active or "")
        if name and name not in self._supervisor.state.models:
            raise Refusal(self._unknown(name))
        call.model = name or None
        ticket = Ticket(call.number, call.client.pid, want, name, call.arrived, call.deadline, **wishes)
        call.deadline = None  # the core's from here on
        self._supervisor.post(RequestArrived(now(), ticket))
        if not call.ended:
            self._follow_variant(call)
        if not call.ended:
            self._tell_progress(call)

    def _follow_variant(self, call: Call) -> None:
        """Where a variant stands in for the model that was asked for, the call is about the variant from here on."""
        state = self._supervisor.state
        ticket = state.waiting.by_request.get(call.number)
        running = state.running.get(call.number)
        claim = ticket or (running.ticket if running is not None else None)
        if claim is not None:
            call.model = claim.model

    def text(self, call: Call, ask: m.Generation, order: Task) -> None:
        """Have a model answer with text, which may be streamed. Raises `Refusal`."""
        call.outlet = TextOutlet()
        call.streaming, call.credit = ask.stream, ask.window
        self.work(call, ask.model, ask.priority, order)

    def work(self, call: Call, model: str | None, priority: m.Priority, order: Task) -> None:
        """Have a model work on an order, or who may answer instead. Raises `Refusal`."""
        call.order, call.priority = order, priority
        if call.deadline is None:
            call.deadline = call.arrived + self._deadline_s
        call.until = call.deadline
        call.asked = self._remotes.called(model or self._supervisor.state.active or "")
        # A part of a larger request asks this one or none.
        call.fallbacks = self._fallbacks(call.asked) if call.on_end is None else ()
        if call.asked in self._supervisor.state.models and (fault := self._lack(call.asked, order)):
            raise Refusal(fault)
        self._be_patient(call, call.asked)
        try:
            self.claim(call, model, Want.INFER, priority=orders.PRIORITIES[priority])
        except Refusal as refusal:
            if not self.fall_back(call, refusal.fault):
                raise

    def _give_up(self, call: Call) -> None:
        """A model has taken too long to begin its answer: the next one is asked."""
        if _has_begun(call):
            return
        call.late = True
        why = f"cannot wait longer for {call.model} to begin: its fallback is asked"
        self._supervisor.post(RequestAbandoned(now(), call.number, Fault("deadline_exceeded", why)))

    def _be_patient(self, call: Call, model: str) -> None:
        """From now on a model has so long to begin, if there is somebody else to ask."""
        call.silence()
        call.late = False
        after_s = self._fallback_after_s(model) if call.fallbacks else None
        if after_s is not None:
            call.alarm = asyncio.get_running_loop().call_later(after_s, self._give_up, call)

    def _lack(self, model: str, order: Task) -> Fault | None:
        """Why a model cannot work on an order, as far as that is known before it is loaded."""
        if not self._manifests[model].remote and (why := beyond_text(order)) is not None:
            return Fault("unsupported", why)
        return self._adapters.lack(model, order)

    def fall_back(self, call: Call, fault: Fault) -> bool:
        """Ask the next model of the chain where that may help and nothing was said yet; False: the fault stands."""
        if (fault.code not in FALLBACK_CODES and not call.late) or _has_begun(call) or call.order is None:
            return False
        while call.fallbacks:
            following, *rest = call.fallbacks
            model, call.fallbacks = self._remotes.called(following), tuple(rest)
            if model not in self._supervisor.state.models or self._lack(model, call.order) is not None:
                continue
            log.info("request.fell_back", request=call.name, model=call.model, to=model, because=fault.message)
            self._calls.renumber(call)
            call.order = msgspec.structs.replace(call.order, request=call.number)
            call.deadline, call.result, call.prefilled = call.until, None, 0.0
            self._be_patient(call, model)
            self.claim(call, model, Want.INFER, priority=orders.PRIORITIES[call.priority])
            return True
        return False


def _has_begun(call: Call) -> bool:
    return call.text is not None and call.text.tokens_seen > 0


def now() -> float:
    """Seconds on the loop's clock, which is the core's."""
    return asyncio.get_running_loop().time()
