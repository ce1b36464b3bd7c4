"""Relief: what is done when the device runs out of memory, or models hold more than their budget. A table.

    level      at each reading
    NORMAL     idle models go while models hold more than their budget
    WARN       the daemon trims its caches; parked models go
    CRITICAL   and no load begins; the idle model that is cheapest to lose goes
    EMERGENCY  and no work begins; loads under way are given up; models without work go, though pinned or waited for;
               then the worker that is most over its plan is ended; then the request of the lowest priority is cut off

The first of these steps that finds something to do is taken, and what goes is awaited; then the next reading tells
whether it helped, and while readings say that the level may be left nothing more is done. So running answers are kept
as long as possible. Called by `machine`.
"""

from collections.abc import Callable
from dataclasses import replace

from h2qd.core import budget, ending, evict, leaving, switching
from h2qd.core.effects import Publish, TrimCaches
from h2qd.core.guard import Level, judge
from h2qd.core.records import Fault, Model, Running
from h2qd.core.states import RESIDENT, Status
from h2qd.core.turn import Turn

_OVER_PLAN_SHARE = 0.05
"""A worker that holds this much more than its plan is an offender."""


def read(turn: Turn, used_share: float, available_bytes: int, *, stalled: bool) -> None:
    """Take a reading of the device's memory, and do what its level asks for."""
    before = turn.state.guard
    guard = judge(before, turn.state.rules.guard, turn.now, used_share, stalled=stalled)
    turn.state = replace(turn.state, guard=guard, available_bytes=budget.beside(turn.state, available_bytes))
    if guard.level is not before.level:
        _tell(turn, before.level, guard.level, available_bytes)
        if guard.level > before.level:
            turn.emit(TrimCaches())
    if turn.state.stopping:
        return
    if guard.easing_since is not None or any(m.status is Status.UNLOADING for m in turn.holders()):
        return  # what was done helps, or memory is on its way back already
    for step in _STEPS[guard.pressing]:
        if step(turn):
            return


def _tell(turn: Turn, was: Level, now: Level, available_bytes: int) -> None:
    turn.emit(
        Publish(
            "memory",
            "memory.level",
            None,
            {
                "was": was.name.lower(),
                "now": now.name.lower(),
                "used_share": round(turn.state.guard.used_share, 4),
                "available_bytes": available_bytes,
            },
        )
    )


def _relieved(turn: Turn, model: Model, what: str) -> None:
    turn.emit(Publish("memory", "memory.relieved", model.name, {"what": what, "charged_bytes": budget.charge(model)}))


# --- the steps; each says whether it found something to do --------------------------------------------


def _drop_parked(turn: Turn) -> bool:
    parked = [m for m in turn.holders() if m.status is Status.PARKED]
    for model in parked:
        _relieved(turn, model, "drop parked")
        leaving.release(turn, model, "the device is short of memory")
    return bool(parked)


def _evict_idle(turn: Turn) -> bool:
    guard, thresholds = turn.state.guard, turn.state.rules.guard
    if not guard.may_evict(thresholds, turn.now):
        return False
    return _evict(turn, pinned=False)


def _evict_pinned(turn: Turn) -> bool:
    return _evict(turn, pinned=True)


def _evict(turn: Turn, *, pinned: bool) -> bool:
    model = next(iter(evict.idle_first(turn.state, turn.now, pinned=pinned)), None)
    if model is None:
        return False
    _relieved(turn, model, "evict idle")
    turn.state = replace(turn.state, guard=replace(turn.state.guard, evicted_at=turn.now))
    leaving.release(turn, model, "the device is short of memory")
    return True


def _give_up_load(turn: Turn) -> bool:
    loading = next((m for m in turn.holders() if m.status is Status.LOADING), None)
    if loading is None or turn.state.switch is None:
        return False
    _relieved(turn, loading, "give up load")
    switching.give_up(turn, turn.state.switch, loading, _fault(f"cannot load {loading.name}"))
    return True


def _end_offender(turn: Turn) -> bool:
    resident = [m for m in turn.holders() if m.status in RESIDENT]
    over = [m for m in resident if m.held_bytes > m.planned_bytes * (1 + _OVER_PLAN_SHARE)]
    if not over:
        return False
    worst = max(over, key=lambda m: (m.held_bytes - m.planned_bytes, m.name))
    _relieved(turn, worst, "end worker over its plan")
    over_bytes = worst.held_bytes - worst.planned_bytes
    fault = _fault(f"cannot go on: {worst.name} held {over_bytes} bytes more than its plan")
    ending.kill(turn, worst, fault, "over its plan while the device ran out of memory")
    return True


def _cut_off_lowest(turn: Turn) -> bool:
    running = turn.state.running.values()
    if not running or any(r.ending is not None for r in running):
        return bool(running)  # one is on its way out already
    lowest = min(running, key=_rank)
    model = turn.model(lowest.ticket.model)
    _relieved(turn, model, "cut off the lowest priority")
    ending.abandon(turn, lowest.ticket.request, _fault("cannot go on"))
    return True


def _rank(running: Running) -> tuple[int, float]:
    """The lowest priority first; of those, who has begun last has the least to lose."""
    return running.ticket.priority, -running.since


def _work_off_debt(turn: Turn) -> bool:
    """Where models hold more than their budget (they grew, or it shrank), idle ones go until it holds again."""
    if budget.free(turn.state) >= 0 or turn.state.switch is not None:
        return False
    model = next(iter(evict.idle_first(turn.state, turn.now)), None)
    if model is None:
        return False
    _relieved(turn, model, "over budget")
    leaving.release(turn, model, "models hold more than their budget")
    return True


def _fault(what: str) -> Fault:
    return Fault("memory_pressure", f"{what}: the device runs out of memory", retry_after_s=10.0)


_STEPS: dict[Level, tuple[Callable[[Turn], bool], ...]] = {
    Level.NORMAL: (_work_off_debt,),
    Level.WARN: (_drop_parked, _work_off_debt),
    Level.CRITICAL: (_drop_parked, _evict_idle, _work_off_debt),
    Level.EMERGENCY: (_drop_parked, _give_up_load, _evict_pinned, _end_offender, _cut_off_lowest),
}
