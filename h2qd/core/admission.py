"""Admission: what a request is told when it arrives, and which waiting request runs next.

Each request ends up in one of four places: granted (it runs), joined (a load it wants is under way), queued
(behind others), refused. Called by `machine`; starts no loads itself, that is `switching`.
"""

import difflib
from dataclasses import replace

from h2qd.core.effects import TellCold, TellResident
from h2qd.core.failures import forget_failures, held_back
from h2qd.core.plan import MemoryPlan, memory_plan
from h2qd.core.records import Fault, Model, Released, State, Ticket, Want
from h2qd.core.states import HOLDING, Status
from h2qd.core.turn import Turn, worker_of

SHUTTING_DOWN = Fault("shutting_down", "cannot take requests: the daemon is stopping")
_GIB = 2**30


def admit(turn: Turn, ticket: Ticket) -> None:
    """Refuse a new ticket, or put it in line.

    1. The daemon is stopping: refused.
    2. It names no model: it means the active one. None is active: refused.
    3. The model is not registered: refused.
    4. A load would be needed that can never fit (refused, with the plan), or the model failed lately and is left
       alone (refused, with the time to wait; a reset clears this first).
    5. As many requests as may already wait for the same: refused. Each want has its own bound, so that a
       crowd of inferences does not keep anybody from unloading the model.
    """
    if turn.state.stopping:
        turn.turn_away(ticket, SHUTTING_DOWN)
        return
    if not ticket.model:
        if turn.state.active is None:
            turn.turn_away(
                ticket, Fault("no_active_model", "cannot choose a model: none was named and none is active")
            )
            return
        ticket = replace(ticket, model=turn.state.active)
    model = turn.state.models.get(ticket.model)
    if model is None:
        turn.turn_away(ticket, no_such_model(turn.state, ticket.model))
        return
    if ticket.want is not Want.COLD:
        if ticket.reset:
            forget_failures(turn, model)
            model = turn.model(model.name)
        on_its_way = model.status in HOLDING and satisfies(model, ticket)
        fault = None if on_its_way else load_fault(turn, model, ticket)
        if fault is not None:
            turn.turn_away(ticket, fault)
            return
    queued = len(turn.waiting_for(model.name, ticket.want))
    if queued >= turn.state.rules.queue_max:
        turn.turn_away(ticket, Fault("queue_full", f"cannot queue: {queued} requests wait for {model.name}", (), 1.0))
        return
    turn.wait(ticket)


def no_such_model(state: State, name: str) -> Fault:
    """The refusal of an unknown name, with the names that come near it."""
    near = difflib.get_close_matches(name, state.models, n=3, cutoff=0.5)
    because = (f"did you mean {' or '.join(near)}?",) if near else ()
    return Fault("no_such_model", f"cannot find a model named {name}", because)


def effective_ctx(model: Model, ctx: int) -> int:
    """The context a load asks for: the wanted or the model's own default, within what the model was made for."""
    wanted = ctx or model.ctx
    return min(wanted, model.shape.context_length) if model.shape.context_length else wanted


def plan_of(model: Model, ctx: int, slots: int = 1) -> MemoryPlan:
    """The memory that a load would take, for as many requests at once as there are slots."""
    return memory_plan(model.shape, effective_ctx(model, ctx), slots)


def load_fault(turn: Turn, model: Model, ticket: Ticket) -> Fault | None:
    """Why the load that a ticket needs may not begin, or None."""
    explicit = ticket.want is Want.RESIDENT
    return fit_fault(turn.state, model, ticket.ctx) or held_back(model, turn.now, explicit=explicit)


def fit_fault(state: State, model: Model, ctx: int) -> Fault | None:
    """Why the model can never be resident here, or None."""
    plan = plan_of(model, ctx, state.rules.slots)
    if plan.total_bytes <= state.limit_bytes:
        return None
    largest = sorted(plan.parts, key=lambda part: -part[1])[:3]
    return Fault(
        "no_fit",
        f"cannot load {model.name} with a context of {plan.ctx}: it needs {plan.total_bytes / _GIB:.2f} GiB, "
        f"models may hold {state.limit_bytes / _GIB:.2f} GiB in all",
        tuple(f"{name}: {size / _GIB:.2f} GiB" for name, size in largest),
    )


def satisfies(model: Model, ticket: Ticket) -> bool:
    """Whether a resident model is what the ticket wants: an unset context takes what there is.

    What its load asked for counts beside what it gave: a worker that rounds the context would else never satisfy.
    """
    return ticket.ctx == 0 or effective_ctx(model, ticket.ctx) in (model.asked_ctx, model.given_ctx)


def serve(turn: Turn) -> None:
    """Answer and grant everything that can be: residency that is there, free slots, models that are cold."""
    for name in turn.state.waiting.by_model:
        model = turn.model(name)
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
            turn.tell(
                ticket,
                TellResident(
                    ticket.request,
                    model.name,
                    changed=False,
                    ctx=model.given_ctx,
                    held_bytes=model.held_bytes,
                    load_s=model.load_s,
                    was_active=turn.state.active,
                ),
            )


def _grant(turn: Turn, model: Model) -> None:
    """Fill the free slots: among the clients in line, the one whose last grant is longest ago goes first."""
    free = turn.state.rules.slots - len(turn.running_on(model.name))
    for _ in range(free):
        line = [t for t in turn.waiting_for(model.name, Want.INFER) if satisfies(model, t)]
        if not line:
            return
        turn.grant(min(line, key=lambda t: turn.state.grants.get(t.client, 0)), worker_of(model))
