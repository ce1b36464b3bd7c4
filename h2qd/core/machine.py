"""The machine: the one door through which everything that happens enters the core.

    step(state, event) -> (state, effects)

Each event changes the records that it speaks of; then the decisions that follow from the records are taken until
nothing more follows (`_settle`): `admission.serve` answers and grants, `leaving` and `switching` move memory. So a
decision never depends on which event made it possible. The one exception is `relief`, which answers each reading of
the device's memory with one act. Called by `runtime.supervisor` only; pure.
"""

from dataclasses import replace
from typing import assert_never

from h2qd.core import admission, breakers, drafting, ending, leaving, lessons, outcome, relief, switching
from h2qd.core.effects import (
    ClearTimer,
    Clock,
    Effect,
    Exit,
    Learn,
    Publish,
    Refuse,
    SetTimer,
    TellForgotten,
    TellPinned,
    Timer,
)
from h2qd.core.events import (
    Event,
    ForgetAsked,
    GenerationEnded,
    LimitRead,
    MemoryRead,
    ModelRegistered,
    PinAsked,
    Recalled,
    RequestAbandoned,
    RequestArrived,
    ServerAsked,
    StopAsked,
    TimerFired,
    WorkerExited,
    WorkerMeasured,
    WorkerParked,
    WorkerReady,
)
from h2qd.core.failures import record_failure
from h2qd.core.offers import plan_of, planned_bytes
from h2qd.core.records import Draft, Fault, Memory, Model, Released, State, Switch
from h2qd.core.states import HOLDING, RESIDENT, Move, Status
from h2qd.core.turn import Turn

_DRAIN = Timer(Clock.DRAIN, 0)


def step(state: State, event: Event) -> tuple[State, tuple[Effect, ...]]:  # noqa: C901, PLR0912 - one flat list of events
    """What follows from `event`. Events about workers and requests that are history change nothing."""
    turn = Turn(state, event.now)
    match event:
        case ModelRegistered():
            _register(turn, event)
        case ServerAsked():
            breakers.looked(turn, event.server, event.fault)
        case Recalled():
            _recall(turn, event)
        case PinAsked():
            _pin(turn, event)
        case ForgetAsked():
            _forget(turn, event)
        case RequestArrived():
            admission.admit(turn, event.ticket)
        case RequestAbandoned():
            ending.abandon(turn, event.request, event.fault)
        case WorkerReady():
            _worker_ready(turn, event)
        case WorkerMeasured():
            _worker_measured(turn, event)
        case WorkerParked():
            _worker_parked(turn, event)
        case WorkerExited():
            _worker_exited(turn, event)
        case GenerationEnded():
            _generation_ended(turn, event)
        case TimerFired():
            _timer_fired(turn, event.timer)
        case LimitRead():
            turn.state = replace(turn.state, limit_bytes=event.limit_bytes)
        case MemoryRead():
            turn.state = replace(
                turn.state, accelerator_bytes=event.accelerator_bytes, foreign_bytes=event.foreign_bytes
            )
            relief.read(turn, event.used_share, event.available_bytes, stalled=event.stalled)
        case StopAsked():
            _stop(turn, event)
        case _:
            assert_never(event)
    _settle(turn)
    leaving.watch_idle(turn)
    turn.remember()
    _tell_phase(turn, state.switch, turn.state.switch)
    return turn.state, tuple(turn.effects)


def _settle(turn: Turn) -> None:
    """Take the decisions that follow until none is left."""
    before = None
    while before is not turn.state:
        before = turn.state
        admission.serve(turn)
        leaving.advance(turn)
        switching.advance(turn)
        if turn.state.stopping:
            _advance_stop(turn)


def _tell_phase(turn: Turn, before: Switch | None, after: Switch | None) -> None:
    """Say where the switch is now; phases that took no time are no news."""
    if after is not None and (before is None or (before.serial, before.phase) != (after.serial, after.phase)):
        turn.emit(Publish("switch", "switch.phase", after.target, {"phase": after.phase.value}))


# --- the list of models -----------------------------------------------------------------------------


def _register(turn: Turn, event: ModelRegistered) -> None:
    known = turn.state.models.get(event.name)
    if known is not None:
        turn.change(
            event.name,
            shape=event.shape,
            ctx=event.ctx,
            traits=event.traits,
            lessons=event.lessons,
            server=event.server,
        )
        turn.state = replace(turn.state, models=drafting.resolved(turn.state.models))
        return
    model = Model(event.name, event.shape, event.ctx, event.traits, event.lessons, event.server, since=event.now)
    turn.state = replace(turn.state, models=drafting.resolved({**turn.state.models, event.name: model}))
    turn.emit(Publish("model", "model.registered", event.name))


def _recall(turn: Turn, event: Recalled) -> None:
    turn.state = replace(turn.state, remembered=Memory(event.active, event.resident, event.pinned))
    if event.active in turn.state.models:
        turn.activate(event.active)
    for name in event.pinned:
        if name in turn.state.models:
            turn.change(name, pinned=True)


def _pin(turn: Turn, event: PinAsked) -> None:
    model = turn.state.models.get(event.name)
    if model is None:
        turn.emit(Refuse(event.request, admission.no_such_model(turn.state, event.name)))
        return
    changed = model.pinned != event.pinned
    if changed:
        turn.change(event.name, pinned=event.pinned)
        turn.emit(Publish("model", "model.pinned" if event.pinned else "model.unpinned", event.name))
        turn.remember()  # before the answer, which is given once it is kept
    turn.emit(TellPinned(event.request, event.name, event.pinned, changed))


def _forget(turn: Turn, event: ForgetAsked) -> None:
    model = turn.state.models.get(event.name)
    if model is None:
        turn.emit(Refuse(event.request, admission.no_such_model(turn.state, event.name)))
        return
    use = _use_of(turn, model)
    if use is not None:
        turn.emit(Refuse(event.request, Fault("in_use", f"cannot remove {event.name}: {use}")))
        return
    rest = {name: m for name, m in turn.state.models.items() if name != event.name}
    turn.state = replace(turn.state, models=drafting.resolved(rest))
    if turn.state.active == event.name:
        turn.activate(None)
    turn.emit(TellForgotten(event.request, event.name))
    turn.emit(Publish("model", "model.removed", event.name))


def _use_of(turn: Turn, model: Model) -> str | None:
    """What a model is needed for, or None."""
    if model.status in HOLDING:
        return f"it is {model.status}"
    if turn.waiting_for(model.name):
        return "requests wait for it"
    switch = turn.state.switch
    if switch is not None and model.name in (switch.target, switch.fallback, *switch.victims, *switch.overlapped):
        return f"the switch to {switch.target} is about it"
    return None


# --- requests ---------------------------------------------------------------------------------------


def _generation_ended(turn: Turn, event: GenerationEnded) -> None:
    running = turn.state.running.get(event.request)
    if running is None:
        return
    fault = running.ending or event.fault
    if running.ending is None:  # how one ends that was told to says nothing of its server
        breakers.request_ended(turn, turn.model(running.ticket.model).server, fault)
    if fault is None:
        turn.complete(running)
    else:
        turn.refuse(running.ticket, fault)


def _timer_fired(turn: Turn, timer: Timer) -> None:
    match timer.clock:
        case Clock.PATIENCE:
            switching.patience_over(turn, timer.key)
        case Clock.DEADLINE:
            overdue = Fault("deadline_exceeded", "cannot finish the request: its deadline passed")
            ending.abandon(turn, timer.key, overdue)
        case Clock.CANCEL:
            ending.cancel_overdue(turn, timer.key)
        case Clock.DRAIN:
            for model in list(turn.holders()):
                ending.cut_off(turn, model, admission.SHUTTING_DOWN)
        case Clock.IDLE:
            leaving.expired(turn, timer.key)
        case _:
            assert_never(timer.clock)


# --- workers ----------------------------------------------------------------------------------------


def _worker_ready(turn: Turn, event: WorkerReady) -> None:
    model = turn.model_of(event.worker)
    if model is None or model.status is not Status.LOADING:
        return
    if event.undrafted and model.terms.draft:
        model = _undrafted(turn, model, event.undrafted)
    model = turn.move(
        model.name,
        Move.LOADED,
        f"in {event.load_s:.2f} s",
        given_ctx=event.ctx,
        held_bytes=event.held_bytes,
        file_bytes=event.file_bytes,
        load_s=event.load_s,
        loaded_at=turn.now,
    )
    _learn(turn, model, exercised=False)
    breakers.load_ended(turn, model.server, None)
    outcome.loaded(turn, turn.model(model.name))


def _undrafted(turn: Turn, model: Model, why: str) -> Model:
    """A model was loaded without the draft model that there was room for."""
    terms = model.terms
    size = planned_bytes(model, terms.ctx, terms.kv_type, turn.state.rules.slots, drafted=False)
    without = Draft(terms.draft).missing(why)
    terms = replace(terms, planned_bytes=size, file_bytes=min(size, terms.file_bytes), draft="", undrafted=without)
    return turn.change(model.name, terms=terms, planned_bytes=size)


def _worker_measured(turn: Turn, event: WorkerMeasured) -> None:
    model = turn.model_of(event.worker)
    if model is None:
        return
    model = turn.change(model.name, held_bytes=event.held_bytes, file_bytes=event.file_bytes)
    if model.status in RESIDENT:
        _learn(turn, model, exercised=event.exercised)


def _learn(turn: Turn, model: Model, *, exercised: bool) -> None:
    """Note what a load was measured to take beside its plan.

    Before a context was full a worker holds less than it will: until then only more than planned is news.
    """
    if not exercised and model.held_bytes <= model.planned_bytes:
        return
    terms, slots = model.terms, turn.state.rules.slots
    plan = plan_of(model, terms.ctx, terms.kv_type, slots, drafted=bool(terms.draft))
    lesson = lessons.Lesson(terms.ctx, slots, terms.kv_type, plan.total_bytes, model.held_bytes, terms.draft)
    if not lessons.is_news(model.lessons, lesson):
        return
    learned = lessons.learn(model.lessons, lesson)
    turn.change(model.name, lessons=learned)
    turn.emit(Learn(model.name, learned))


def _worker_parked(turn: Turn, event: WorkerParked) -> None:
    model = turn.model_of(event.worker)
    if model is None or model.status is not Status.UNLOADING:
        return
    gone = Released(model.name, model.held_bytes, event.freed_bytes, event.took_s, parked=True)
    detail = f"{gone.freed_bytes} of {gone.held_bytes} bytes back in {gone.took_s:.2f} s"
    turn.move(model.name, Move.PARKED, detail, held_bytes=event.held_bytes, file_bytes=0, planned_bytes=0)
    outcome.released(turn, gone)


def _worker_exited(turn: Turn, event: WorkerExited) -> None:
    model = turn.model_of(event.worker)
    if model is None:
        return
    leaving.unwatch(turn, model)
    if model.status is Status.UNLOADING:
        gone = Released(model.name, event.held_bytes, event.freed_bytes, event.took_s)
        detail = f"{gone.freed_bytes} of {gone.held_bytes} bytes back in {gone.took_s:.2f} s"
        turn.move(model.name, Move.GONE, detail, worker=None, held_bytes=0, planned_bytes=0)
        outcome.released(turn, gone)
        return
    if model.status is Status.PARKED:
        turn.move(model.name, Move.GONE, event.fault.message, worker=None, held_bytes=0, planned_bytes=0)
        return
    was = model.status
    for running in turn.running_on(model.name):
        turn.refuse(running.ticket, running.ending or event.fault)
    model = record_failure(turn, model, event.fault)
    if was is Status.LOADING:
        breakers.load_ended(turn, model.server, event.fault)
        outcome.load_failed(turn, model, event.fault)


# --- the end ----------------------------------------------------------------------------------------


def _stop(turn: Turn, event: StopAsked) -> None:
    """Refuse what waits, give loads up, let running work end until the drain is over."""
    if turn.state.stopping:
        return
    state = turn.state = replace(turn.state, stopping=True)
    turn.refuse_all(tuple(state.waiting), admission.SHUTTING_DOWN)
    if state.switch is not None:
        switching.call_off(turn, state.switch, "the daemon stops")
    for model in list(turn.holders()):
        if model.status is Status.READY:
            turn.move(model.name, Move.DRAIN, "the daemon stops")
    turn.emit(SetTimer(_DRAIN, turn.now + event.drain_s))
    turn.emit(Publish("daemon", "daemon.stopping"))


def _advance_stop(turn: Turn) -> None:
    """Release what has no work left; when nothing holds memory any more, end."""
    for model in list(turn.holders()):
        if model.status is Status.PARKED or (model.status in RESIDENT and not turn.running_on(model.name)):
            leaving.release(turn, model)
    if not turn.state.stopped and not list(turn.holders()):
        turn.state = replace(turn.state, stopped=True)
        turn.emit(ClearTimer(_DRAIN))
        turn.emit(Exit())
