"""How a load ends: the switch is committed, rolled back or given up, and who waited for it hears how it went.

A switch commits when its target is ready; what may stay until then goes now. When the target fails, what was active
loads again, once, and those who asked for the target hear of both. Called by `machine` with what workers report, and
by `switching` where it gives up.
"""

from dataclasses import replace

from h2qd.core import breakers, budget
from h2qd.core.admission import less_than_asked, satisfies, satisfies_with, tell_cold
from h2qd.core.effects import TellResident
from h2qd.core.failures import held_back
from h2qd.core.leaving import make_way
from h2qd.core.loads import start_load, wanted
from h2qd.core.records import Fault, Model, Phase, Released, Switch, Want
from h2qd.core.states import HOLDING, RESIDENT, Status
from h2qd.core.turn import Turn


def released(turn: Turn, gone: Released) -> None:
    """A model gave its memory back as it was told: answer who waited for that, and note it in the switch."""
    if turn.model(gone.model).status not in HOLDING:
        tell_cold(turn, gone.model, gone)
    switch = turn.state.switch
    if switch is not None and gone.model in switch.victims:
        turn.set_switch(replace(switch, released=(*switch.released, gone)))


def loaded(turn: Turn, model: Model) -> None:
    """A load succeeded: commit the switch, or its rollback, answer who waited for it, and let go what it replaces."""
    switch = switch_of(turn, model)
    was_active = turn.state.active
    turn.set_switch(None)
    if switch.phase is Phase.ROLLBACK:
        answer_losers(turn, switch, f"rolled back: {model.name} is resident again")
        return
    for name in switch.overlapped:
        make_way(turn, name, f"{model.name} took its place")
    told = [t for t in turn.waiting_for(model.name, Want.RESIDENT) if satisfies(model, t)]
    if was_active is None or turn.state.rules.exclusive or any(ticket.activate for ticket in told):
        turn.activate(model.name)
    for ticket in told:
        turn.tell(
            ticket,
            TellResident(
                ticket.request,
                model.name,
                changed=True,
                ctx=model.given_ctx,
                held_bytes=model.held_bytes,
                load_s=model.load_s,
                released=switch.released,
                was_active=was_active,
                kv_type=model.terms.kv_type,
                less=less_than_asked(model, ticket),
                draining=switch.overlapped,
            ),
        )


def load_failed(turn: Turn, model: Model, fault: Fault) -> None:
    """A load failed: roll back to what was active, or give up. `model` is in its failed status already."""
    switch = switch_of(turn, model)
    turn.set_switch(None)
    stayed = [name for name in switch.overlapped if turn.model(name).status in RESIDENT]
    if stayed:
        fault = replace(fault, because=(*fault.because, f"nothing changed: {', '.join(stayed)} stayed"))
    fallback = _fallback(turn, switch)
    if fallback is None:
        answer_losers(turn, switch, f"and so did the rollback: {fault.message}")
        turn.refuse_all(wanted(turn, model.name), fault)
        return
    terms = switch.fallback_terms
    losers = []
    for ticket in wanted(turn, model.name):
        if fallback == model.name and satisfies_with(model, terms, ticket):
            continue  # the rollback gives it what it wants
        if ticket.want is Want.RESIDENT:
            losers.append(ticket)
        else:
            turn.refuse(ticket, fault)
    turn.set_aside(losers)
    start_load(turn, turn.model(fallback), terms)
    turn.set_switch(replace(switch, phase=Phase.ROLLBACK, victims=(), failure=fault, losers=tuple(losers)))


def _fallback(turn: Turn, switch: Switch) -> str | None:
    """What to load again after a failure: what was active and still is, if it may be loaded. One rollback only."""
    name = switch.fallback
    if switch.phase is Phase.ROLLBACK or name is None or name != turn.state.active:
        return None
    if (name, switch.fallback_terms) == (switch.target, switch.terms):
        return None  # that is what failed just now
    model = turn.model(name)
    fits = switch.fallback_terms.planned_bytes <= budget.free(turn.state, {name})
    going = model.status is Status.UNLOADING  # it was parked, and has to go all the same
    if going or not fits or not turn.state.guard.admits_loads:
        return None
    if held_back(model, turn.now, explicit=True) or breakers.away(turn.state, model, turn.now):
        return None
    return name


def switch_of(turn: Turn, model: Model) -> Switch:
    """The switch that loads a model."""
    if turn.state.switch is None:
        raise AssertionError(f"{model.name} loads outside of a switch")
    return turn.state.switch


def answer_losers(turn: Turn, switch: Switch, ending: str) -> None:
    """Tell those whose load failed why, and how the rollback for it ended."""
    if switch.failure is None:
        return
    heard = replace(switch.failure, because=(*switch.failure.because, ending))
    for ticket in switch.losers:
        turn.refuse(ticket, heard)
