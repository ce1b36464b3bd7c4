"""Switching: the one way by which memory changes hands. A load into free memory is a switch without victims.

    patience -> drain -> unload -> load -> committed
                                    `-> rollback -> the old model is resident again, the new one failed

At most one switch is under way; the next begins for whoever has waited longest. Work that runs is never cut off
unless a ticket says `force`. Patience bounds starvation: while it lasts the old model goes on admitting, after it
no more. Called by `machine` after every event.
"""

from dataclasses import replace

from h2qd.core.admission import effective_ctx, plan_of, satisfies
from h2qd.core.effects import (
    ClearTimer,
    Clock,
    SetTimer,
    StartWorker,
    StopGeneration,
    StopWorker,
    TellCold,
    TellResident,
    Timer,
)
from h2qd.core.failures import held_back
from h2qd.core.records import Fault, Model, Phase, Released, Switch, Ticket, Want
from h2qd.core.states import HOLDING, Move, Status
from h2qd.core.turn import Turn


def advance(turn: Turn) -> None:
    """Take unloads and the switch as far as they go now, then begin the next switch."""
    for model in list(turn.state.models.values()):
        _advance_unload(turn, model)
    switch = turn.state.switch
    if switch is not None:
        _advance_switch(turn, switch)
    if turn.state.switch is None and not turn.state.stopping:
        _begin_next(turn)


# --- explicit unloads -------------------------------------------------------------------------------


def _advance_unload(turn: Turn, model: Model) -> None:
    """Unload a model that a ticket wants cold: at once when it is idle or loading, else when its work has ended."""
    tickets = turn.waiting_for(model.name, Want.COLD)
    if not tickets or model.status not in HOLDING:
        return
    if model.status is Status.LOADING:
        _abandon_load(turn, model, Fault("load_cancelled", f"cannot load {model.name}: somebody unloaded it"))
        return
    if model.status is Status.READY:
        model = turn.move(model.name, Move.DRAIN, "unload asked")
    if model.status is Status.DRAINING:
        if any(ticket.force for ticket in tickets):
            cut_off(turn, model, Fault("unloaded", f"cannot go on: {model.name} was unloaded by force"))
        if not turn.running_on(model.name):
            _release(turn, model)


def _abandon_load(turn: Turn, model: Model, fault: Fault) -> None:
    for want in (Want.INFER, Want.RESIDENT):
        for ticket in turn.waiting_for(model.name, want):
            turn.refuse(ticket, fault)
    turn.move(model.name, Move.ABANDON)
    turn.emit(StopWorker(_worker(model), at_once=True))


def _release(turn: Turn, model: Model) -> None:
    turn.move(model.name, Move.RELEASE)
    turn.emit(StopWorker(_worker(model)))


def cut_off(turn: Turn, model: Model, fault: Fault) -> None:
    """End all work on a model now."""
    for running in turn.running_on(model.name):
        turn.emit(StopGeneration(running.ticket.request, running.worker))
        turn.refuse(running.ticket, fault)


def _worker(model: Model) -> int:
    if model.worker is None:
        raise AssertionError(f"{model.name} is {model.status} without a worker")
    return model.worker


# --- the switch -------------------------------------------------------------------------------------


def _wanted(turn: Turn, name: str) -> tuple[Ticket, ...]:
    """The tickets that a switch to this model would serve."""
    return tuple(t for t in turn.waiting_for(name) if t.want is not Want.COLD)


def _begin_next(turn: Turn) -> None:
    """Begin a switch for the oldest ticket that waits for a model in the wrong state."""
    for ticket in turn.state.waiting:
        if ticket.want is Want.COLD:
            continue
        model = turn.model(ticket.model)
        if model.status in (Status.READY, Status.DRAINING) and satisfies(model, ticket):
            continue  # it waits for a slot, or for an unload that was asked for to end
        if model.status is Status.UNLOADING or turn.waiting_for(model.name, Want.COLD):
            continue  # the unload comes first; its end brings us here again
        _begin(turn, model, ticket)
        return


def _begin(turn: Turn, target: Model, ticket: Ticket) -> None:
    fault = held_back(target, turn.now, explicit=ticket.want is Want.RESIDENT)
    if fault is not None:  # it failed while this ticket waited
        turn.refuse(ticket, fault)
        _begin_next(turn)
        return
    victims = tuple(m.name for m in turn.holders())
    fallback = turn.state.active if turn.state.active in victims else None
    switch = Switch(
        serial=turn.serial(),
        target=target.name,
        ctx=effective_ctx(target, ticket.ctx),
        phase=Phase.PATIENCE,
        began=turn.now,
        victims=victims,
        fallback=fallback,
        fallback_ctx=turn.model(fallback).given_ctx if fallback else 0,
    )
    turn.set_switch(switch)
    if any(turn.running_on(name) or _in_line(turn, name) for name in victims):
        turn.emit(SetTimer(Timer(Clock.PATIENCE, switch.serial), turn.now + turn.state.rules.patience_s))
    _advance_switch(turn, switch)


def _in_line(turn: Turn, name: str) -> bool:
    """Whether requests wait that a victim would still serve while patience lasts.

    Tickets that want the same model with another context wait for this very switch and do not count.
    """
    model = turn.model(name)
    line = turn.waiting_for(name, Want.INFER)
    return model.status is Status.READY and any(satisfies(model, ticket) for ticket in line)


def _advance_switch(turn: Turn, switch: Switch) -> None:
    match switch.phase:
        case Phase.PATIENCE | Phase.DRAIN:
            _advance_drain(turn, switch)
        case Phase.UNLOAD:
            _advance_victims(turn, switch)
        case Phase.LOAD:
            _advance_load(turn, switch)
        case Phase.ROLLBACK:
            pass  # ended by the fallback's WorkerReady or WorkerExited


def _advance_drain(turn: Turn, switch: Switch) -> None:
    tickets = _wanted(turn, switch.target)
    if not tickets:
        _call_off(turn, switch)
        return
    forced = any(ticket.force for ticket in tickets)
    if forced:
        fault = Fault("unloaded", f"cannot go on: the memory was taken by force for {switch.target}")
        for name in switch.victims:
            cut_off(turn, turn.model(name), fault)
    patient = switch.phase is Phase.PATIENCE and not forced
    if any(turn.running_on(name) or (patient and _in_line(turn, name)) for name in switch.victims):
        return
    turn.emit(ClearTimer(Timer(Clock.PATIENCE, switch.serial)))
    for name in switch.victims:
        model = turn.model(name)
        if model.status in (Status.READY, Status.DRAINING):
            _release(turn, model)
    switch = replace(switch, phase=Phase.UNLOAD)
    turn.set_switch(switch)
    _advance_victims(turn, switch)


def patience_over(turn: Turn, serial: int) -> None:
    """Put up the barrier: what must go admits nothing more."""
    switch = turn.state.switch
    if switch is None or switch.serial != serial or switch.phase is not Phase.PATIENCE:
        return
    for name in switch.victims:
        if turn.model(name).status is Status.READY:
            turn.move(name, Move.DRAIN, f"{switch.target} waited {turn.now - switch.began:.1f} s")
    turn.set_switch(replace(switch, phase=Phase.DRAIN))


def _call_off(turn: Turn, switch: Switch) -> None:
    """Nobody wants the target any more and nothing was unloaded: the old models go on."""
    turn.emit(ClearTimer(Timer(Clock.PATIENCE, switch.serial)))
    for name in switch.victims:
        if turn.model(name).status is Status.DRAINING and not turn.waiting_for(name, Want.COLD):
            turn.move(name, Move.RESUME, f"nobody waits for {switch.target} any more")
    turn.set_switch(None)


def _advance_victims(turn: Turn, switch: Switch) -> None:
    if any(turn.model(name).status in HOLDING for name in switch.victims):
        return
    if not _wanted(turn, switch.target):
        turn.set_switch(None)
        return
    start_load(turn, switch.target, switch.ctx)
    turn.set_switch(replace(switch, phase=Phase.LOAD))


def start_load(turn: Turn, name: str, ctx: int) -> None:
    """Have a new worker load a model."""
    model = turn.model(name)
    worker = turn.serial()
    planned = plan_of(model, ctx).total_bytes
    turn.move(name, Move.LOAD, worker=worker, given_ctx=ctx, planned_bytes=planned, held_bytes=0)
    turn.emit(StartWorker(worker, name, ctx))


def _advance_load(turn: Turn, switch: Switch) -> None:
    """Give a load up when nobody waits for it any more; its end is `committed` or `load_failed`."""
    model = turn.model(switch.target)
    if model.status is Status.LOADING and not _wanted(turn, switch.target):
        turn.move(model.name, Move.ABANDON, "nobody waits for it any more")
        turn.emit(StopWorker(_worker(model), at_once=True))
    if turn.model(switch.target).status is not Status.LOADING:
        turn.set_switch(replace(switch, phase=Phase.UNLOAD, victims=(switch.target,), fallback=None))


# --- how a load ends --------------------------------------------------------------------------------


def released(turn: Turn, gone: Released) -> None:
    """A model is cold after an unload that was wanted: answer who waited for that, and note it in the switch."""
    if turn.state.active == gone.model and turn.waiting_for(gone.model, Want.COLD):
        turn.activate(None)
    for ticket in turn.waiting_for(gone.model, Want.COLD):
        turn.tell(ticket, TellCold(ticket.request, gone.model, gone))
    switch = turn.state.switch
    if switch is not None and gone.model in switch.victims:
        turn.set_switch(replace(switch, released=(*switch.released, gone)))


def loaded(turn: Turn, model: Model) -> None:
    """A load succeeded: commit the switch, or its rollback, and answer who waited for it."""
    switch = turn.state.switch
    if switch is None:
        raise AssertionError(f"{model.name} was loaded outside of a switch")
    was_active = turn.state.active
    turn.activate(model.name)
    turn.set_switch(None)
    if switch.phase is Phase.ROLLBACK:
        _answer_losers(turn, switch, f"rolled back: {model.name} is resident again")
        return
    for ticket in turn.waiting_for(model.name, Want.RESIDENT):
        if satisfies(model, ticket):
            told = TellResident(
                ticket.request,
                model.name,
                changed=True,
                ctx=model.given_ctx,
                held_bytes=model.held_bytes,
                load_s=model.load_s,
                released=switch.released,
                was_active=was_active,
            )
            turn.tell(ticket, told)


def load_failed(turn: Turn, model: Model, fault: Fault) -> None:
    """A load failed: roll back to what was active, or give up. `model` is in its failed status already."""
    switch = turn.state.switch
    if switch is None:
        raise AssertionError(f"{model.name} failed to load outside of a switch")
    if switch.phase is Phase.ROLLBACK:
        turn.set_switch(None)
        _answer_losers(turn, switch, f"and so did the rollback: {fault.message}")
        _refuse_line(turn, model.name, fault)
        return
    fallback = switch.fallback
    if fallback is None or held_back(turn.model(fallback), turn.now, explicit=True):
        turn.set_switch(None)
        _refuse_line(turn, model.name, fault)
        return
    if fallback != model.name:
        for ticket in turn.waiting_for(model.name, Want.INFER):
            turn.refuse(ticket, fault)
    losers = turn.waiting_for(model.name, Want.RESIDENT)
    turn.set_aside(losers)
    start_load(turn, fallback, switch.fallback_ctx)
    turn.set_switch(replace(switch, phase=Phase.ROLLBACK, victims=(), failure=fault, losers=losers))


def _refuse_line(turn: Turn, name: str, fault: Fault) -> None:
    for ticket in _wanted(turn, name):
        turn.refuse(ticket, fault)


def _answer_losers(turn: Turn, switch: Switch, ending: str) -> None:
    failure = switch.failure or Fault("load_failed", f"cannot load {switch.target}")
    for ticket in switch.losers:
        turn.refuse(ticket, replace(failure, because=(*failure.because, ending)))
