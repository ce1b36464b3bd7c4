"""Events about what is history change nothing: the outside world is always a little behind."""

from collections.abc import Callable

import pytest

from h2qd.core.effects import Clock, Timer
from h2qd.core.events import (
    Event,
    GenerationEnded,
    RequestAbandoned,
    TimerFired,
    WorkerExited,
    WorkerMeasured,
    WorkerParked,
    WorkerReady,
)
from h2qd.core.machine import step
from tests.playbook import (
    CANCELLED,
    CRASH,
    LOAD_FAILED,
    Playbook,
    Scene,
    answered,
    cancel,
    complete,
    dies,
    ends,
    fires,
    gone,
    grant,
    halt,
    infer,
    load,
    ready,
    refuse,
    remember,
    resident,
    start,
    stop,
    stop_asked,
)

PAST_REQUEST = 1
NO_REQUEST = 999


def cold() -> Playbook:
    """Request 1 was answered by a's first worker, which then crashed."""
    play = Playbook("a", "b").given_ready("a").when(infer(PAST_REQUEST, "a")).then(grant(PAST_REQUEST, "a"))
    return play.when(answered(PAST_REQUEST)).then(complete(PAST_REQUEST)).when(dies("a")).then()


def running() -> Playbook:
    play = cold().when(infer(2, "a")).then(start("a")).when(ready("a")).then(grant(2, "a"))
    return play.when(infer(3, "a")).then()


def patience() -> Playbook:
    return running().when(load(4, "b")).then()


def drain() -> Playbook:
    return patience().when(fires(Clock.PATIENCE)).then()


def ending() -> Playbook:
    return drain().when(cancel(2)).then(halt(2, "a"))


def unloading() -> Playbook:
    return drain().when(answered(2)).then(complete(2), stop("a"))


def loading() -> Playbook:
    return unloading().when(gone("a")).then(start("b"))


def rollback() -> Playbook:
    return loading().when(dies("b", LOAD_FAILED)).then(start("a"))


def stopping() -> Playbook:
    return (
        loading()
        .when(stop_asked())
        .then(refuse(3, "shutting_down"), refuse(4, "shutting_down"), stop("b", at_once=True))
    )


def stopped() -> Playbook:
    return stopping().when(gone("b")).then(ends())


STALE: list[Callable[[Scene], Event]] = [
    lambda s: WorkerReady(s.now, s.worker("a", 0), 4096, 1, 0.1),
    lambda s: WorkerMeasured(s.now, s.worker("a", 0), 12345),
    lambda s: WorkerExited(s.now, s.worker("a", 0), CRASH, 1, 1, 0.1),
    lambda s: GenerationEnded(s.now, PAST_REQUEST),
    lambda s: GenerationEnded(s.now, PAST_REQUEST, LOAD_FAILED),
    lambda s: GenerationEnded(s.now, NO_REQUEST),
    lambda s: RequestAbandoned(s.now, PAST_REQUEST, CANCELLED),
    lambda s: RequestAbandoned(s.now, NO_REQUEST, CANCELLED),
    lambda s: TimerFired(s.now, Timer(Clock.DEADLINE, PAST_REQUEST)),
    lambda s: TimerFired(s.now, Timer(Clock.CANCEL, PAST_REQUEST)),
    lambda s: TimerFired(s.now, Timer(Clock.PATIENCE, 0)),
]


@pytest.mark.parametrize("event", STALE)
@pytest.mark.parametrize(
    "moment", [cold, running, patience, drain, ending, unloading, loading, rollback, stopping, stopped]
)
def test_news_of_the_past_change_nothing(moment: Callable[[], Playbook], event: Callable[[Scene], Event]) -> None:
    play = moment()
    assert step(play.state, event(play._scene())) == (play.state, ())


@pytest.mark.parametrize("moment", [drain, ending, unloading, loading, rollback])
def test_a_patience_that_was_over_before_changes_nothing(moment: Callable[[], Playbook]) -> None:
    play = moment()
    assert play.state.switch is not None
    late = TimerFired(play.now, Timer(Clock.PATIENCE, play.state.switch.serial))
    assert step(play.state, late) == (play.state, ())


def test_a_worker_that_is_ready_twice_is_ready_once() -> None:
    play = running()
    worker = play.state.models["a"].worker
    assert worker is not None
    assert step(play.state, WorkerReady(play.now, worker, 1, 1, 0.1)) == (play.state, ())


def test_a_worker_that_says_it_has_parked_and_was_not_told_to_goes_on() -> None:
    for moment in (running, patience, loading):
        play = moment()
        worker = next(m.worker for m in play.state.models.values() if m.worker is not None)
        assert step(play.state, WorkerParked(play.now, worker, 1)) == (play.state, ())


def test_an_answer_that_crosses_its_cancellation_is_not_sent() -> None:
    ending().when(answered(2)).then(refuse(2, "cancelled"), stop("a"))


def test_an_answer_of_a_worker_that_was_cut_off_is_not_sent() -> None:
    play = running().when(load(4, "b", force=True)).then(halt(2, "a"), refuse(2, "unloaded"), stop("a"))
    play.when(answered(2)).then().when(gone("a")).then(start("b"))
    play.when(ready("b")).then(remember("b"), resident(4, "b"), stop("b"))
