"""The end of the daemon: idle, busy, in the middle of everything."""

from h2qd.core.effects import Clock
from h2qd.core.records import Rules
from h2qd.core.states import Status
from tests.playbook import (
    LOAD_FAILED,
    Playbook,
    answered,
    cancel,
    clears,
    complete,
    dies,
    ends,
    fires,
    forget,
    forgotten,
    gone,
    grant,
    halt,
    infer,
    load,
    notice,
    ready,
    refuse,
    sets,
    start,
    stop,
    stop_asked,
    unload,
)


def test_with_nothing_resident_it_ends_at_once() -> None:
    play = (
        Playbook("a")
        .when(stop_asked())
        .then(ends())
        .timers(sets(Clock.DRAIN, at=1010.0), clears(Clock.DRAIN))
        .notices(notice("daemon.stopping"))
    )
    assert play.state.stopped


def test_an_idle_model_is_unloaded_first() -> None:
    (
        Playbook("a")
        .given_ready("a")
        .when(stop_asked())
        .then(stop("a"))
        .when(gone("a"))
        .then(ends())
        .timers(clears(Clock.DRAIN))
        .states(a=Status.COLD)
    )


def test_running_work_ends_and_waiting_work_is_refused() -> None:
    (
        Playbook("a", "b")
        .given_ready("a")
        .when(infer(1, "a"))
        .then(grant(1, "a"))
        .when(infer(2, "a"))
        .then()
        .when(load(3, "b"))
        .then()
        .when(stop_asked())
        .then(refuse(2, "shutting_down"), refuse(3, "shutting_down"))
        .timers(clears(Clock.PATIENCE), sets(Clock.DRAIN, at=1010.0))
        .states(a=Status.DRAINING)
        .when(infer(4, "a"))
        .then(refuse(4, "shutting_down"))
        .when(infer(5))
        .then(refuse(5, "shutting_down"))
        .when(unload(6, "zzz"))
        .then(refuse(6, "shutting_down"))
        .when(answered(1))
        .then(complete(1), stop("a"))
        .when(gone("a"))
        .then(ends())
    )


def test_being_asked_twice_changes_nothing() -> None:
    Playbook("a").given_ready("a").when(stop_asked()).then(stop("a")).when(stop_asked()).then().timers()


def test_work_that_outlasts_the_drain_is_cut_off() -> None:
    (
        Playbook("a", rules=Rules(slots=2))
        .given_ready("a")
        .when(infer(1, "a"))
        .then(grant(1, "a"))
        .when(infer(2, "a"))
        .then(grant(2, "a"))
        .when(cancel(2))
        .then(halt(2, "a"))
        .when(stop_asked(drain_s=3.0))
        .then()
        .when(fires(Clock.DRAIN))
        .then(halt(1, "a"), refuse(1, "shutting_down"), refuse(2, "cancelled"), stop("a"))
        .when(answered(1))
        .then()
        .when(gone("a"))
        .then(ends())
    )


def test_the_end_of_the_drain_hastens_nothing_that_goes_already() -> None:
    (
        Playbook("a")
        .given_ready("a")
        .when(stop_asked())
        .then(stop("a"))
        .when(fires(Clock.DRAIN))
        .then()
        .when(gone("a"))
        .then(ends())
    )


def test_a_load_under_way_is_given_up() -> None:
    (
        Playbook("a")
        .when(load(1, "a"))
        .then(start("a"))
        .when(stop_asked())
        .then(refuse(1, "shutting_down"), stop("a", at_once=True))
        .when(ready("a"))
        .then()
        .when(gone("a"))
        .then(ends())
    )


def test_a_rollback_under_way_is_given_up_and_its_losers_hear_of_it() -> None:
    (
        Playbook("a", "b")
        .given_ready("a")
        .when(load(1, "b"))
        .then(stop("a"))
        .when(gone("a"))
        .then(start("b"))
        .when(dies("b", LOAD_FAILED))
        .then(start("a"))
        .when(stop_asked())
        .then(
            refuse(1, "load_failed", because=("and the rollback was given up: the daemon stops",)),
            stop("a", at_once=True),
        )
        .when(dies("a"))
        .then(ends())
        .states(a=Status.COLD, b=Status.FAILED)
    )


def test_an_unload_under_way_is_awaited() -> None:
    (
        Playbook("a", "b")
        .given_ready("a")
        .when(load(1, "b"))
        .then(stop("a"))
        .when(stop_asked())
        .then(refuse(1, "shutting_down"))
        .when(gone("a"))
        .then(ends())
    )


def test_a_drain_under_way_goes_on() -> None:
    (
        Playbook("a", "b")
        .given_ready("a")
        .when(infer(1, "a"))
        .then(grant(1, "a"))
        .when(load(2, "b"))
        .then()
        .when(fires(Clock.PATIENCE))
        .then()
        .when(stop_asked())
        .then(refuse(2, "shutting_down"))
        .states(a=Status.DRAINING)
        .when(answered(1))
        .then(complete(1), stop("a"))
        .when(gone("a"))
        .then(ends())
    )


def test_a_crash_while_draining_ends_the_drain() -> None:
    (
        Playbook("a")
        .given_ready("a")
        .when(infer(1, "a"))
        .then(grant(1, "a"))
        .when(stop_asked())
        .then()
        .when(dies("a"))
        .then(refuse(1, "worker_crashed"), ends())
    )


def test_a_cancel_that_is_overdue_while_stopping_kills() -> None:
    (
        Playbook("a")
        .given_ready("a")
        .when(infer(1, "a"))
        .then(grant(1, "a"))
        .when(cancel(1))
        .then(halt(1, "a"))
        .when(stop_asked(drain_s=60.0))
        .then()
        .when(fires(Clock.CANCEL))
        .then(refuse(1, "cancelled"), stop("a", at_once=True))
        .when(gone("a"))
        .then(ends())
    )


def test_a_model_can_be_forgotten_while_the_daemon_stops() -> None:
    Playbook("a", "b").given_ready("a").when(stop_asked()).then(stop("a")).when(forget(1, "b")).then(
        forgotten(1, "b")
    )
