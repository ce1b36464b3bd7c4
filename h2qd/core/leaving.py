"""Leaving: how a resident model goes, whoever wants it gone. Its running work ends first, unless it is cut off.

A model may go at once when it has no work; a *leaving* one is closed to new work and goes as soon as the work it has
has ended. Going means that its process ends, or that it is parked: the process stays without its context. Also
watches for models that nobody used for so long that they go by themselves. Called by `machine`, `switching` and
`relief`.
"""

from h2qd.core import budget, evict, remote_plan
from h2qd.core.effects import ClearTimer, Clock, ParkWorker, SetTimer, StopWorker, Timer
from h2qd.core.guard import Level
from h2qd.core.offers import parked_bytes
from h2qd.core.records import Model, Want
from h2qd.core.states import Move, Status
from h2qd.core.turn import Turn, worker_of


def release(turn: Turn, model: Model, why: str = "") -> None:
    """End a model's process; it has no work."""
    turn.move(model.name, Move.RELEASE, why, leaving="")
    turn.emit(StopWorker(worker_of(model)))


def park(turn: Turn, model: Model, why: str = "") -> None:
    """Have a model free its context and keep its process; it has no work."""
    turn.move(model.name, Move.PARK, why, leaving="")
    turn.emit(ParkWorker(worker_of(model)))


def may_park(turn: Turn, model: Model, beside_bytes: int) -> bool:
    """Whether a model that goes keeps its process: the rules say so, and it has room beside `beside_bytes`.

    A server's model has nothing to keep here.
    """
    state = turn.state
    return (
        state.rules.park_s > 0
        and model.shape.format not in remote_plan.FORMATS
        and state.guard.level is Level.NORMAL
        and not turn.waiting_for(model.name, Want.COLD)
        and beside_bytes + parked_bytes(model, state.rules.slots) <= budget.room(state)
    )


def make_way(turn: Turn, name: str, why: str) -> None:
    """Let a resident model go as soon as its work has ended; it may be on its way out or gone already."""
    model = turn.model(name)
    if model.status is Status.READY:
        turn.move(name, Move.DRAIN, why, leaving=why)
    elif model.status is Status.DRAINING:
        turn.change(name, leaving=why)
    advance(turn)


def advance(turn: Turn) -> None:
    """Let go who is leaving and has no work any more."""
    for model in list(turn.holders()):
        if not model.leaving or turn.running_on(model.name):
            continue
        if may_park(turn, model, budget.charged(budget.others(turn.state, model.name))):
            park(turn, model, model.leaving)
        else:
            release(turn, model, model.leaving)


# --- idle models ------------------------------------------------------------------------------------


def watch_idle(turn: Turn) -> None:
    """Note since when models are idle, and time those that go by themselves when they stay so."""
    for model in list(turn.state.models.values()):
        idle = model.status in (Status.PARKED, Status.READY) and not evict.is_busy(turn.state, model)
        idle_since = (turn.now if model.idle_since is None else model.idle_since) if idle else None
        stay_s = turn.state.rules.park_s if model.status is Status.PARKED else model.traits.ttl_s
        expires_at = None if idle_since is None or model.pinned or stay_s <= 0 else idle_since + stay_s
        if (idle_since, expires_at) == (model.idle_since, model.expires_at):
            continue
        turn.change(model.name, idle_since=idle_since, expires_at=expires_at)
        if expires_at == model.expires_at:
            continue
        if model.expires_at is not None:
            turn.emit(ClearTimer(Timer(Clock.IDLE, worker_of(model))))
        if expires_at is not None:
            turn.emit(SetTimer(Timer(Clock.IDLE, worker_of(model)), expires_at))


def unwatch(turn: Turn, model: Model) -> None:
    """A model's worker is gone, and so is the timer of its idleness."""
    if model.expires_at is not None:
        turn.emit(ClearTimer(Timer(Clock.IDLE, worker_of(model))))
        turn.change(model.name, expires_at=None)


def expired(turn: Turn, worker: int) -> None:
    """A model was idle for as long as it may be."""
    model = turn.model_of(worker)
    if model is not None and model.expires_at is not None and turn.now >= model.expires_at:
        turn.change(model.name, expires_at=None)
        release(turn, model, f"idle for {turn.now - (model.idle_since or turn.now):.0f} s")
