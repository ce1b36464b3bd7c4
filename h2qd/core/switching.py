"""Switching: the one way by which memory changes hands. A load into free memory is a switch without victims.

    patience -> drain -> unload -> load -> committed
                                    `-> rollback -> the old model is resident again, the new one failed

At most one switch is under way; the next begins for whoever has waited longest. Work that runs is never cut off
unless a ticket says `force`. Patience bounds starvation: while it lasts the old model goes on admitting, after it
no more. Called by `machine` after every event.
"""

from dataclasses import replace

from h2qd.core.admission import effective_ctx, fit_fault, load_fault, plan_of, satisfies, tell_cold
from h2qd.core.effects import (
    ClearTimer,
    Clock,
    SetTimer,
    StartWorker,
    StopGeneration,
    StopWorker,
    TellResident,
    Timer,
)
from h2qd.core.failures import held_back
from h2qd.core.records import Fault, Model, Phase, Released, State, Switch, Ticket, Want
from h2qd.core.states import HOLDING, RESIDENT, Move, Status
from h2qd.core.turn import Turn, worker_of


def advance(turn: Turn) -> None:
    """Take the switch and unloads as far as they go now, then begin the next switch."""
    if turn.state.switch is not None:
        _advance_switch(turn, turn.state.switch)
    for model in list(turn.holders()):
        if turn.waiting_for(model.name, Want.COLD):
            _advance_unload(turn, model)
        elif model.status is Status.DRAINING and not _must_drain(turn.state, model.name):
            turn.move(model.name, Move.RESUME, "nobody wants its memory any more")
    if turn.state.switch is None:
        _begin_next(turn)


# --- explicit unloads -------------------------------------------------------------------------------


def _advance_unload(turn: Turn, model: Model) -> None:
    """Unload a model that a ticket wants cold: at once when it is idle or loading, else when its work has ended."""
    if model.status is Status.LOADING:
        _refuse_line(turn, model.name, Fault("load_cancelled", f"cannot load {model.name}: somebody unloaded it"))
        call_off(turn, _switch_of(turn, model), "somebody unloaded it")
        return
    if model.status is Status.READY:
        model = turn.move(model.name, Move.DRAIN, "unload asked")
    if model.status is Status.DRAINING:
        if any(ticket.force for ticket in turn.waiting_for(model.name, Want.COLD)):
            cut_off(turn, model, Fault("unloaded", f"cannot go on: {model.name} was unloaded by force"))
        if not turn.running_on(model.name):
            _release(turn, model)


def _must_drain(state: State, name: str) -> bool:
    switch = state.switch
    return state.stopping or (switch is not None and switch.phase is Phase.DRAIN and name in switch.victims)


def _release(turn: Turn, model: Model) -> None:
    turn.move(model.name, Move.RELEASE)
    turn.emit(StopWorker(worker_of(model)))


def cut_off(turn: Turn, model: Model, fault: Fault) -> None:
    """End all work on a model now."""
    for running in turn.running_on(model.name):
        if running.ending is None:
            turn.emit(StopGeneration(running.ticket.request, running.worker))
        turn.refuse(running.ticket, running.ending or fault)


# --- the switch -------------------------------------------------------------------------------------


def needs_load(model: Model, ticket: Ticket) -> bool:
    """Whether a ticket waits for a load; else for a slot, or for an unload (or the drain before it) to end."""
    return ticket.want is not Want.COLD and not (model.status in RESIDENT and satisfies(model, ticket))


def _wanted(turn: Turn, name: str) -> tuple[Ticket, ...]:
    """The tickets that a switch to this model would serve."""
    model = turn.model(name)
    return tuple(t for t in turn.waiting_for(name) if needs_load(model, t))


def _begin_next(turn: Turn) -> None:
    """Begin a switch for the oldest ticket that waits for a model that is not there, or about to go."""
    for ticket in turn.state.waiting:
        model = turn.model(ticket.model)
        if not needs_load(model, ticket):
            continue
        fault = load_fault(turn, model, ticket)
        if fault is None:
            _begin(turn, model, ticket)
            return
        turn.refuse(ticket, fault)  # while it waited the model failed, or the limit fell


def _begin(turn: Turn, target: Model, ticket: Ticket) -> None:
    victims = tuple(m.name for m in turn.holders())
    fallback = turn.state.active if turn.state.active in victims else None
    busy = any(turn.running_on(name) for name in victims)
    switch = Switch(
        serial=turn.serial(),
        target=target.name,
        ctx=effective_ctx(target, ticket.ctx),
        phase=Phase.PATIENCE if busy else Phase.DRAIN,
        began=turn.now,
        victims=victims,
        fallback=fallback,
        fallback_ctx=turn.model(fallback).asked_ctx if fallback else 0,
    )
    turn.set_switch(switch)
    if busy:
        turn.emit(SetTimer(Timer(Clock.PATIENCE, switch.serial), turn.now + turn.state.rules.patience_s))


def _advance_switch(turn: Turn, switch: Switch) -> None:
    """Take the switch on to its next phase. A load and a rollback end by what their worker does."""
    if switch.phase is Phase.ROLLBACK:
        return
    tickets = _wanted(turn, switch.target)
    if not tickets:
        call_off(turn, switch, "nobody waits for it any more")
    elif switch.phase in (Phase.PATIENCE, Phase.DRAIN):
        _advance_drain(turn, switch, tickets)
    elif switch.phase is Phase.UNLOAD:
        _advance_victims(turn, switch, tickets)


def call_off(turn: Turn, switch: Switch, why: str) -> None:
    """End a switch where it is. What was not told to go yet goes on; a worker that loads goes, as in any unload."""
    _end_patience(turn, switch)
    turn.set_switch(None)
    _answer_losers(turn, switch, f"and the rollback was given up: {why}")
    for model in list(turn.holders()):
        if model.status is Status.LOADING:
            turn.move(model.name, Move.ABANDON, why)
            turn.emit(StopWorker(worker_of(model), at_once=True))


def _advance_drain(turn: Turn, switch: Switch, tickets: tuple[Ticket, ...]) -> None:
    if any(ticket.force for ticket in tickets):
        fault = Fault("unloaded", f"cannot go on: the memory was taken by force for {switch.target}")
        for name in switch.victims:
            cut_off(turn, turn.model(name), fault)
    if any(turn.running_on(name) for name in switch.victims):
        return  # while patience lasts, `serve` grants before this looks: the line in front of a victim counts as work
    _end_patience(turn, switch)
    for name in switch.victims:
        model = turn.model(name)
        if model.status in RESIDENT:
            _release(turn, model)
    turn.set_switch(replace(switch, phase=Phase.UNLOAD))


def _end_patience(turn: Turn, switch: Switch) -> None:
    if switch.phase is Phase.PATIENCE:
        turn.emit(ClearTimer(Timer(Clock.PATIENCE, switch.serial)))


def patience_over(turn: Turn, serial: int) -> None:
    """Put up the barrier: what must go admits nothing more."""
    switch = turn.state.switch
    if switch is None or switch.serial != serial or switch.phase is not Phase.PATIENCE:
        return
    for name in switch.victims:
        if turn.model(name).status is Status.READY:
            turn.move(name, Move.DRAIN, f"{switch.target} waited {turn.now - switch.began:.1f} s")
    turn.set_switch(replace(switch, phase=Phase.DRAIN))


def _advance_victims(turn: Turn, switch: Switch, tickets: tuple[Ticket, ...]) -> None:
    """Once the memory is back, load for the oldest ticket that still may; who began the switch may be gone."""
    if any(turn.model(name).status in HOLDING for name in switch.victims):
        return
    target = turn.model(switch.target)
    ticket = next((t for t in tickets if load_fault(turn, target, t) is None), None)
    if ticket is None:
        turn.set_switch(None)  # `_begin_next` tells them why
        return
    ctx = effective_ctx(target, ticket.ctx)
    _start_load(turn, target.name, ctx)
    turn.set_switch(replace(switch, phase=Phase.LOAD, ctx=ctx))


def _start_load(turn: Turn, name: str, ctx: int) -> None:
    """Have a new worker load a model."""
    model = turn.model(name)
    worker = turn.serial()
    planned = plan_of(model, ctx, turn.state.rules.slots).total_bytes
    turn.move(name, Move.LOAD, worker=worker, asked_ctx=ctx, given_ctx=ctx, planned_bytes=planned)
    turn.emit(StartWorker(worker, name, ctx, planned))


# --- how a load ends --------------------------------------------------------------------------------


def released(turn: Turn, gone: Released) -> None:
    """A model is cold after an unload that was wanted: answer who waited for that, and note it in the switch."""
    tell_cold(turn, gone.model, gone)
    switch = turn.state.switch
    if switch is not None and gone.model in switch.victims:
        turn.set_switch(replace(switch, released=(*switch.released, gone)))


def loaded(turn: Turn, model: Model) -> None:
    """A load succeeded: commit the switch, or its rollback, and answer who waited for it."""
    switch = _switch_of(turn, model)
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
    switch = _switch_of(turn, model)
    turn.set_switch(None)
    fallback = _fallback(turn, switch)
    if fallback is None:
        _answer_losers(turn, switch, f"and so did the rollback: {fault.message}")
        _refuse_line(turn, model.name, fault)
        return
    losers = []
    for ticket in _wanted(turn, model.name):
        wanted_ctx = effective_ctx(model, ticket.ctx) if ticket.ctx else switch.fallback_ctx
        if fallback == model.name and wanted_ctx == switch.fallback_ctx:
            continue  # the rollback gives it what it wants
        if ticket.want is Want.RESIDENT:
            losers.append(ticket)
        else:
            turn.refuse(ticket, fault)
    turn.set_aside(losers)
    _start_load(turn, fallback, switch.fallback_ctx)
    turn.set_switch(replace(switch, phase=Phase.ROLLBACK, victims=(), failure=fault, losers=tuple(losers)))


def _fallback(turn: Turn, switch: Switch) -> str | None:
    """What to load again after a failure: what was active and still is, if it may be loaded. One rollback only."""
    name = switch.fallback
    if switch.phase is Phase.ROLLBACK or name is None or name != turn.state.active:
        return None
    if (name, switch.fallback_ctx) == (switch.target, switch.ctx):
        return None  # that is what failed just now
    model = turn.model(name)
    if held_back(model, turn.now, explicit=True) or fit_fault(turn.state, model, switch.fallback_ctx):
        return None
    return name


def leave_losers(turn: Turn, switch: Switch, request: int, fault: Fault) -> None:
    """End a request that waits for the end of a rollback, if it does."""
    for ticket in switch.losers:
        if ticket.request == request:
            turn.set_switch(replace(switch, losers=tuple(t for t in switch.losers if t is not ticket)))
            turn.refuse(ticket, fault)


def _switch_of(turn: Turn, model: Model) -> Switch:
    """The switch that loads a model."""
    if turn.state.switch is None:
        raise AssertionError(f"{model.name} loads outside of a switch")
    return turn.state.switch


def _refuse_line(turn: Turn, name: str, fault: Fault) -> None:
    turn.refuse_all(_wanted(turn, name), fault)


def _answer_losers(turn: Turn, switch: Switch, ending: str) -> None:
    if switch.failure is None:
        return
    heard = replace(switch.failure, because=(*switch.failure.because, ending))
    for ticket in switch.losers:
        turn.refuse(ticket, heard)
