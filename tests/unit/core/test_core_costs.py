"""What a step costs when the house is full: 200 models with 64 requests in front of each.

A step takes well under a millisecond then (0.7 ms in the median on a small server); the bounds here are many times
that, so that a busy machine passes and a cost that grows with the product of lines and models does not.
"""

from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from time import perf_counter

from h2qd.core.effects import Exit, Refuse
from h2qd.core.events import (
    Event,
    GenerationEnded,
    ModelRegistered,
    RequestAbandoned,
    RequestArrived,
    StopAsked,
    WorkerExited,
    WorkerReady,
)
from h2qd.core.invariants import check
from h2qd.core.machine import step
from h2qd.core.records import Line, State, Ticket, Want
from tests.playbook import CANCELLED, CRASH, CTX, SHAPE

MODELS, DEPTH = 200, 64
STEP_S_MAX = 0.010
STOP_S_MAX = 0.5


def full_house() -> State:
    """Every line is full, and the first model is resident and works."""
    state = State()
    for number in range(MODELS):
        state, _ = step(state, ModelRegistered(0.0, f"m{number}", SHAPE, CTX))
    state, _ = step(state, RequestArrived(0.0, Ticket(0, 0, Want.INFER, "m0", 0.0)))
    worker = state.models["m0"].worker
    assert worker is not None
    state, _ = step(state, WorkerReady(0.0, worker, CTX, 1, 0.1))
    lines = {
        f"m{number}": tuple(
            Ticket(1 + number * DEPTH + place, place, Want.INFER, f"m{number}", 0.0) for place in range(DEPTH)
        )
        for number in range(MODELS)
    }
    line = Line({ticket.request: ticket for tickets in lines.values() for ticket in tickets}, lines)
    return replace(state, waiting=line)


def ordinary_events(state: State, round_: int) -> Iterator[Event]:
    """What happens all the time: an answer, a new request that takes its place in line, a client that leaves."""
    yield GenerationEnded(0.0, next(iter(state.running)))
    yield RequestArrived(0.0, Ticket(100_000 + round_, round_ % DEPTH, Want.INFER, "m0", 0.0))
    yield RequestAbandoned(0.0, 1 + (MODELS - 1 - round_) * DEPTH, CANCELLED)


def test_an_ordinary_step_costs_little_whatever_waits() -> None:
    state = full_house()
    costs_s = []
    for round_ in range(20):
        for event in ordinary_events(state, round_):
            began = perf_counter()
            state, _ = step(state, event)
            costs_s.append(perf_counter() - began)
            assert check(state) is None
    assert median(costs_s) < STEP_S_MAX


def test_a_step_that_answers_everybody_costs_a_step_each_at_most() -> None:
    state = full_house()
    began = perf_counter()
    state, effects = step(state, StopAsked(0.0, 0.0))
    assert perf_counter() - began < STOP_S_MAX
    assert sum(isinstance(effect, Refuse) for effect in effects) == MODELS * DEPTH
    worker = state.models["m0"].worker
    assert worker is not None
    state, effects = step(state, WorkerExited(0.0, worker, CRASH))
    assert Exit() in effects


def test_a_crash_in_front_of_full_lines_does_not_dig_into_the_stack() -> None:
    """Everybody in line for a model that is held back is refused in one step, however many they are."""
    state = full_house()
    deep = tuple(Ticket(10**6 + n, n, Want.INFER, "m0", 0.0) for n in range(3000))
    state = replace(
        state,
        waiting=Line({t.request: t for t in deep}, {"m0": deep}),
        rules=replace(state.rules, queue_max=3000, breaker_count=1),
    )
    worker = state.models["m0"].worker
    assert worker is not None
    state, effects = step(state, WorkerExited(0.0, worker, CRASH))
    assert sum(isinstance(effect, Refuse) for effect in effects) == 3001
    assert check(state) is None
