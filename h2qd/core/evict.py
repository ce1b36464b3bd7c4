"""Eviction: which models go so that another one fits. Pure and silent: it chooses, `switching` does.

    1. What is on its way out goes anyway, and parked processes cost little: these before any other.
    2. Pinned models never go.
    3. As few busy models as possible, better none; a busy one is drained, never cut off.
    4. Then the lower priority goes, then what costs least: the time its reload takes, less the longer it was idle.
    5. Of equal choices the one that frees fewer bytes.

Up to `_EXACT_MAX` candidates every set is weighed, so several small models or one large go, whichever costs less;
beyond that the cheapest by the byte go until there is room, and whoever was not needed stays.
"""

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import TypeAlias

from h2qd.core import budget
from h2qd.core.records import Model, State, Want
from h2qd.core.states import HOLDING, RESIDENT, Status

_EXACT_MAX = 8
_READ_BYTES_PER_S = 200e6
"""How fast a model that was never measured is taken to load: a card's reading speed."""

_IDLE_HALF_S = 60.0
"""A model that was idle for so long counts half of its reload: it is half as likely to be wanted soon."""

_Cost: TypeAlias = tuple[int, int, float, int]


def victims(state: State, target: str, needed_bytes: int, bound_bytes: int, now: float) -> tuple[str, ...] | None:
    """Who goes so that `target` can be charged `needed_bytes` within `bound_bytes`; None when that is impossible.

    The target itself goes first where it is resident on other terms; a parked one is woken up instead, unless its
    process has grown beyond that.
    """
    own = state.models[target]
    wakes_up = own.status is Status.PARKED and own.held_bytes <= needed_bytes
    itself = (target,) if own.status in HOLDING and not wakes_up else ()
    rest = budget.others(state, target)
    going = [m for m in rest if _goes_anyway(state, m)]
    if any(is_kept(m) for m in going):
        return None
    staying = [m for m in rest if m not in going]
    needed = needed_bytes + budget.charged(staying) - bound_bytes
    chosen = _cheapest(state, [m for m in staying if not is_kept(m)], needed, now)
    if chosen is None:
        return None
    awaited = going if state.rules.exclusive or needed + budget.charged(going) > 0 else []
    return (*itself, *sorted(m.name for m in (*awaited, *chosen)))


def is_kept(model: Model) -> bool:
    """Whether a pin keeps a model; it does not keep what is parked, or on its way out."""
    return model.pinned and model.status in RESIDENT | {Status.LOADING} and not model.leaving


def _goes_anyway(state: State, model: Model) -> bool:
    """Whether no choice is needed: one model at a time is the rule, or it is on its way out already."""
    return model.status is Status.UNLOADING or (state.rules.exclusive and model.status is not Status.PARKED)


def idle_first(state: State, now: float, *, pinned: bool = False) -> list[Model]:
    """The models that could go right now, the cheapest to lose first: parked ones, then resident ones without work.

    Pinned models come last, and only when asked for; then a line in front of a model does not keep it either.
    """
    parked = [m for m in state.models.values() if m.status is Status.PARKED]
    works = is_working if pinned else is_busy
    idle = [m for m in state.models.values() if m.status is Status.READY and not works(state, m)]
    wanted = [m for m in (*parked, *idle) if pinned or not is_kept(m)]
    return sorted(wanted, key=lambda m: (is_kept(m), m.status is not Status.PARKED, *_cost(state, [m], now), m.name))


def is_busy(state: State, model: Model) -> bool:
    """Whether a model has work, or somebody waits for it to do some."""
    return is_working(state, model) or bool(state.waiting.of(model.name, Want.INFER))


def is_working(state: State, model: Model) -> bool:
    """Whether requests run on a model."""
    return any(r.ticket.model == model.name for r in state.running.values())


def _cheapest(state: State, staying: list[Model], needed: int, now: float) -> Iterable[Model] | None:
    if needed <= 0:
        return ()
    if budget.charged(staying) < needed:
        return None
    return (_best_set if len(staying) <= _EXACT_MAX else _greedy)(state, staying, needed, now)


def _best_set(state: State, staying: list[Model], needed: int, now: float) -> Iterable[Model]:
    enough = (
        group
        for size in range(1, len(staying) + 1)
        for group in combinations(staying, size)
        if budget.charged(group) >= needed
    )
    return min(enough, key=lambda group: (_cost(state, group, now), sorted(m.name for m in group)))


def _greedy(state: State, staying: list[Model], needed: int, now: float) -> Iterable[Model]:
    def by_the_byte(model: Model) -> tuple[int, int, float]:
        busy, priority, seconds, size = _cost(state, [model], now)
        return busy, priority, seconds / max(1, size)

    chosen: list[Model] = []
    for model in sorted(staying, key=by_the_byte):
        if budget.charged(chosen) >= needed:
            break
        chosen.append(model)
    for model in list(chosen):
        rest = [m for m in chosen if m is not model]
        if budget.charged(rest) >= needed:
            chosen = rest
    return chosen


def _cost(state: State, group: Sequence[Model], now: float) -> _Cost:
    busy = sum(is_busy(state, m) for m in group)
    resident = [m for m in group if m.status is not Status.PARKED]
    priority = max((m.traits.priority for m in resident), default=-(2**31))
    seconds = sum(_reload_s(m, now) for m in resident)
    return busy, priority, seconds, budget.charged(group)


def _reload_s(model: Model, now: float) -> float:
    load_s = model.load_s or model.planned_bytes / _READ_BYTES_PER_S
    idle_s = now - model.idle_since if model.idle_since is not None else 0.0
    return load_s / (1.0 + max(0.0, idle_s) / _IDLE_HALF_S)
