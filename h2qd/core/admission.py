"""Admission: what a request is told when it arrives, and which waiting request runs next.

Each request ends up in one of four places: granted (it runs), joined (a load it wants is under way), queued
(behind others), refused. Called by `machine`; starts no loads itself, that is `switching`.
"""

import difflib
from dataclasses import replace

from h2qd.core import breakers, evict
from h2qd.core.effects import TellCold, TellResident
from h2qd.core.failures import forget_failures, held_back
from h2qd.core.offers import effective_ctx, offer_for
from h2qd.core.records import PRIORITY_MAX, Fault, Model, Released, State, Terms, Ticket, Want
from h2qd.core.states import HOLDING, Status
from h2qd.core.turn import Turn, worker_of

SHUTTING_DOWN = Fault("shutting_down", "cannot take requests: the daemon is stopping")
_SCARCE = ("no_fit", "pinned", "memory_pressure")
"""Why a model may be had in the shape of a variant: there is no memory for the model itself."""

_AGING_S = 15.0
"""Whoever has waited for long is as urgent as a high priority, and takes turns with it."""


def admit(turn: Turn, ticket: Ticket) -> None:
    """Refuse a new ticket, or put it in line.

    1. The daemon is stopping: refused.
    2. It names no model: it means the active one. None is active: refused.
    3. The model is not registered: refused.
    4. A load would be needed that cannot fit, not even with less than was asked for, nor as a variant (refused, with
       the plan); or the device is short of memory, or the model failed lately and is left alone (refused, with the
       time to wait; a reset clears the latter first). So it is where the server that runs the model is away.
    5. It wants a pinned model cold, and not by force: refused.
    6. As many requests as may already wait for the same: refused. Each want has its own bound, so that a
       crowd of inferences does not keep anybody from unloading the model.
    """
    if turn.state.stopping:
        turn.turn_away(ticket, SHUTTING_DOWN)
        return
    ticket = replace(ticket, model=ticket.model or turn.state.active or "")
    if not ticket.model:
        turn.turn_away(ticket, Fault("no_active_model", "cannot choose a model: none was named and none is active"))
        return
    model = turn.state.models.get(ticket.model)
    if model is None:
        turn.turn_away(ticket, no_such_model(turn.state, ticket.model))
        return
    ticket_or_fault = _unload_of(model, ticket) if ticket.want is Want.COLD else _load_of(turn, model, ticket)
    if isinstance(ticket_or_fault, Fault):
        turn.turn_away(ticket, ticket_or_fault)
        return
    ticket = ticket_or_fault
    queued = len(turn.waiting_for(ticket.model, ticket.want))
    if queued >= turn.state.rules.queue_max:
        full = Fault("queue_full", f"cannot queue: {queued} requests wait for {ticket.model}", (), 1.0)
        turn.turn_away(ticket, full)
        return
    turn.wait(ticket)


def _load_of(turn: Turn, model: Model, ticket: Ticket) -> Ticket | Fault:
    """The ticket, for the model that it wants or a variant that can be had in its place; or why neither can."""
    if ticket.reset:
        forget_failures(turn, model)
        model = turn.model(model.name)
    if ticket.want is Want.INFER and (gone := breakers.away(turn.state, model, turn.now)) is not None:
        return gone
    fault = _need_fault(turn, model, ticket)
    if fault is None:
        return ticket
    variant = _fitting_variant(turn, model, ticket) if fault.code in _SCARCE and not ticket.exact else None
    return fault if variant is None else replace(ticket, model=variant.name, asked_model=model.name)


def _unload_of(model: Model, ticket: Ticket) -> Ticket | Fault:
    if not model.pinned or model.status not in HOLDING or ticket.force:
        return ticket
    fix = f"h2qctl unpin {model.name}   or   h2qctl unload {model.name} --force"
    return Fault("pinned", f"cannot unload {model.name}: it is pinned", fix=fix)


def _need_fault(turn: Turn, model: Model, ticket: Ticket) -> Fault | None:
    """Why a ticket cannot have what it needs, or None; what is there, or on its way, needs nothing."""
    on_its_way = model.status in HOLDING - {Status.PARKED} and satisfies(model, ticket)
    offer = None if on_its_way else load_offer(turn, model, ticket)
    return offer if isinstance(offer, Fault) else None


def _fitting_variant(turn: Turn, model: Model, ticket: Ticket) -> Model | None:
    """The first variant of a model that can be had where the model cannot."""
    known = (turn.state.models.get(name) for name in model.traits.variants)
    return next((v for v in known if v is not None and _need_fault(turn, v, ticket) is None), None)


def no_such_model(state: State, name: str) -> Fault:
    """The refusal of an unknown name, with the names that come near it."""
    near = difflib.get_close_matches(name, state.models, n=3, cutoff=0.5)
    because = (f"did you mean {' or '.join(near)}?",) if near else ()
    return Fault("no_such_model", f"cannot find a model named {name}", because)


def load_offer(turn: Turn, model: Model, ticket: Ticket) -> Terms | Fault:
    """What the load that a ticket needs would be given now, or why it may not begin."""
    if (gone := breakers.away(turn.state, model, turn.now)) is not None:
        return gone
    if not turn.state.guard.admits_loads:
        level = turn.state.guard.level.name.lower()
        return Fault(
            "memory_pressure",
            f"cannot load {model.name}: the device is short of memory",
            (f"level {level}: {turn.state.guard.used_share:.0%} of its memory is in use",),
            retry_after_s=turn.state.rules.guard.dwell_s,
        )
    offer = offer_for(turn.state, model, ticket)
    if isinstance(offer, Fault):
        return offer
    if ticket.gentle and evict.victims(turn.state, model.name, offer.planned_bytes, turn.state.limit_bytes, turn.now):
        return Fault("no_fit", f"cannot load {model.name}: it does not fit beside what is resident")
    return held_back(model, turn.now, explicit=ticket.want is Want.RESIDENT) or offer


def satisfies(model: Model, ticket: Ticket) -> bool:
    """Whether a resident model is what the ticket wants; its worker may have rounded the context."""
    return _is_met(model, model.terms, ticket, (model.given_ctx,))


def satisfies_with(model: Model, terms: Terms, ticket: Ticket) -> bool:
    """Whether a load on `terms` would be what the ticket wants."""
    return _is_met(model, terms, ticket, ())


def _is_met(model: Model, terms: Terms, ticket: Ticket, rounded_ctx: tuple[int, ...]) -> bool:
    """Whether `terms` are what the ticket wants. What it does not name it takes as it was meant to be.

    Unless the ticket is exact, what the load was meant to be counts like what it was given: who asks for the same
    again would be given the same again.
    """
    wanted_ctx = effective_ctx(model, ticket.ctx) if ticket.ctx else terms.asked_ctx
    wanted_kv = ticket.kv_type or terms.asked_kv
    ctx = (terms.ctx, *rounded_ctx) if ticket.exact else (terms.ctx, *rounded_ctx, terms.asked_ctx)
    kv = (terms.kv_type,) if ticket.exact else (terms.kv_type, terms.asked_kv)
    return wanted_ctx in ctx and wanted_kv in kv


def less_than_asked(model: Model, ticket: Ticket) -> tuple[str, ...]:
    """What a resident model is less than a ticket asked for, in words."""
    variant = (f"{model.name} instead of {ticket.asked_model}",) if ticket.asked_model else ()
    return (*variant, *model.terms.less)


def serve(turn: Turn) -> None:
    """Answer and grant everything that can be: residency that is there, free slots, models that are cold.

    Work for models of a server that is away is refused, unless a load is about to tell more.
    """
    for name in turn.state.waiting.by_model:
        model = turn.model(name)
        gone = breakers.away(turn.state, model, turn.now)
        if gone is not None and model.status is not Status.LOADING:
            for ticket in turn.waiting_for(name, Want.INFER):
                turn.refuse(ticket, gone)
        if model.status not in HOLDING:
            tell_cold(turn, name)
        elif model.status is Status.READY:
            _tell_resident(turn, model)
            _grant(turn, model)


def tell_cold(turn: Turn, name: str, released: Released | None = None) -> None:
    """Answer who wanted a model cold. Unnamed requests no longer mean it, and no rollback brings it back."""
    tickets = turn.waiting_for(name, Want.COLD)
    if tickets and turn.state.active == name:
        turn.activate(None)
    for ticket in tickets:
        turn.tell(ticket, TellCold(ticket.request, name, released))


def _tell_resident(turn: Turn, model: Model) -> None:
    """Answer who wants what is there already. It is the active model: only the end of its memory ends that."""
    for ticket in turn.waiting_for(model.name, Want.RESIDENT):
        if satisfies(model, ticket):
            was_active = turn.state.active
            if ticket.activate:
                turn.activate(model.name)
            turn.tell(
                ticket,
                TellResident(
                    ticket.request,
                    model.name,
                    changed=False,
                    ctx=model.given_ctx,
                    held_bytes=model.held_bytes,
                    load_s=model.load_s,
                    was_active=was_active,
                    kv_type=model.terms.kv_type,
                    less=less_than_asked(model, ticket),
                ),
            )


def _grant(turn: Turn, model: Model) -> None:
    """Fill the slots: the most urgent goes first; of those, the client whose last grant is longest ago."""
    if not turn.state.guard.admits_work:
        return
    waiting = [t for t in turn.waiting_for(model.name, Want.INFER) if satisfies(model, t)]
    while line := _with_slots(turn, model, waiting):
        granted = _next(turn, line)
        waiting.remove(granted)
        turn.grant(granted, worker_of(model))


def _with_slots(turn: Turn, model: Model, waiting: list[Ticket]) -> list[Ticket]:
    """For whom a slot is free, or taken by work of a lower priority, which the engine pauses for it.

    Work that was paused and has aged is not paused again. An engine takes twice as many requests as it has slots.
    """
    slots = turn.state.rules.slots
    running = [running.ticket for running in turn.running_on(model.name)]
    if len(running) >= 2 * slots:
        return []
    urgencies = [_urgency(turn, t, t.since) for t in running]
    return [t for t in waiting if sum(urgency >= t.priority for urgency in urgencies) < slots]


def _next(turn: Turn, line: list[Ticket]) -> Ticket:
    """Who goes next: first of all which client, then which of its tickets.

    Between clients a ticket has waited since its client was served last, so that who keeps a crowd in line does not
    grow more urgent than the others by that. Among its own tickets each has waited since it came.
    """
    grants = turn.state.grants

    def of_clients(ticket: Ticket) -> tuple[int, int]:
        rank, served_at = grants.get(ticket.client, (0, ticket.since))
        return -_urgency(turn, ticket, max(ticket.since, served_at)), rank

    client = min(line, key=of_clients).client
    return min((t for t in line if t.client == client), key=lambda t: -_urgency(turn, t, t.since))


def _urgency(turn: Turn, ticket: Ticket, since: float) -> int:
    """Its priority, and one more for each `_AGING_S` of waiting: a low one waits longer, but never for ever."""
    return min(PRIORITY_MAX, ticket.priority + int((turn.now - since) / _AGING_S))
