"""Requests that end early: cancelled, past their deadline, or on a worker that does not let go of them."""

from h2qd.core.effects import Clock
from h2qd.core.records import Fault, Rules
from h2qd.core.states import Status
from tests.playbook import (
    CANCELLED,
    LOAD_FAILED,
    Playbook,
    answered,
    cancel,
    clears,
    complete,
    dies,
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
    sets,
    start,
    stop,
    unload,
)


def running(rules: Rules | None = None) -> Playbook:
    """Model a runs request 1."""
    return Playbook("a", "b", rules=rules).given_ready("a").when(infer(1, "a")).then(grant(1, "a"))


def test_a_waiting_request_is_answered_at_once() -> None:
    running().when(infer(2, "a")).then().when(cancel(2)).then(refuse(2, "cancelled"))


def test_a_running_request_is_answered_when_its_worker_let_go() -> None:
    (
        running()
        .when(infer(2, "a"))
        .then()
        .when(cancel(1))
        .then(halt(1, "a"))
        .timers(sets(Clock.CANCEL, at=1005.0))
        .when(answered(1))
        .then(refuse(1, "cancelled"), grant(2, "a"))
        .timers(clears(Clock.CANCEL))
    )


def test_a_second_cancel_changes_nothing() -> None:
    slow = Fault("too_slow", "cannot go on: the client does not read")
    (
        running()
        .when(cancel(1))
        .then(halt(1, "a"))
        .when(cancel(1, slow))
        .then()
        .timers()
        .when(answered(1, LOAD_FAILED))
        .then(refuse(1, "cancelled"))
    )


def test_a_worker_that_does_not_let_go_is_killed() -> None:
    (
        running(Rules(slots=2))
        .when(infer(2, "a"))
        .then(grant(2, "a"))
        .when(infer(3, "a"))
        .then()
        .when(cancel(1))
        .then(halt(1, "a"))
        .when(fires(Clock.CANCEL))
        .then(refuse(1, "cancelled"), refuse(2, "worker_hung"), stop("a", at_once=True))
        .states(a=Status.UNLOADING)
        .when(gone("a"))
        .then(start("a"))
        .when(ready("a"))
        .then(grant(3, "a"))
    )


def test_two_cancels_overdue_end_with_one_kill() -> None:
    (
        running(Rules(slots=2))
        .when(infer(2, "a"))
        .then(grant(2, "a"))
        .when(cancel(1))
        .then(halt(1, "a"))
        .later(1.0)
        .when(cancel(2))
        .then(halt(2, "a"))
        .later(1.0)
        .when(answered(1))
        .then(refuse(1, "cancelled"))
        .timers(clears(Clock.CANCEL))
        .when(fires(Clock.CANCEL))
        .then(refuse(2, "cancelled"), stop("a", at_once=True))
    )


def test_a_kill_in_a_drain_makes_room_for_the_switch() -> None:
    (
        running()
        .when(load(2, "b"))
        .then()
        .when(fires(Clock.PATIENCE))
        .then()
        .when(cancel(1))
        .then(halt(1, "a"))
        .when(fires(Clock.CANCEL))
        .then(refuse(1, "cancelled"), stop("a", at_once=True))
        .when(gone("a"))
        .then(start("b"))
    )


def test_a_kill_in_patience_makes_room_for_the_switch() -> None:
    (
        running(Rules(patience_s=60.0))
        .when(load(2, "b"))
        .then()
        .when(cancel(1))
        .then(halt(1, "a"))
        .when(fires(Clock.CANCEL))
        .then(refuse(1, "cancelled"), stop("a", at_once=True))
        .timers(clears(Clock.CANCEL), clears(Clock.PATIENCE))
        .when(gone("a"))
        .then(start("b"))
    )


def test_a_worker_that_crashes_on_a_cancel_ends_the_request_as_cancelled() -> None:
    (
        running()
        .when(cancel(1))
        .then(halt(1, "a"))
        .when(dies("a"))
        .then(refuse(1, "cancelled"))
        .timers(clears(Clock.CANCEL))
        .states(a=Status.COLD)
    )


def test_a_deadline_ends_a_running_request() -> None:
    (
        Playbook("a")
        .given_ready("a")
        .when(infer(1, "a", deadline=1002.0))
        .then(grant(1, "a"))
        .timers(sets(Clock.DEADLINE, at=1002.0))
        .when(fires(Clock.DEADLINE))
        .then(halt(1, "a"))
        .timers(sets(Clock.CANCEL, at=1007.0))
        .when(answered(1))
        .then(refuse(1, "deadline_exceeded"))
    )


def test_a_deadline_that_is_met_is_cleared() -> None:
    (
        Playbook("a")
        .given_ready("a")
        .when(infer(1, "a", deadline=1002.0))
        .then(grant(1, "a"))
        .when(answered(1))
        .then(complete(1))
        .timers(clears(Clock.DEADLINE))
        .when(load(2, "a", deadline=1002.0))
        .then(resident(2, "a"))
        .timers(sets(Clock.DEADLINE, at=1002.0), clears(Clock.DEADLINE))
    )


def test_a_refusal_at_the_door_touches_no_timer() -> None:
    Playbook("a").when(infer(1, "b", deadline=1002.0)).then(refuse(1, "no_such_model")).timers()


def test_who_waits_for_a_rollback_can_leave() -> None:
    (
        Playbook("a", "b")
        .given_ready("a")
        .when(load(1, "b", deadline=1060.0))
        .then(stop("a"))
        .when(load(2, "b"))
        .then()
        .when(gone("a"))
        .then(start("b"))
        .when(dies("b", LOAD_FAILED))
        .then(start("a"))
        .when(fires(Clock.DEADLINE))
        .then(refuse(1, "deadline_exceeded"))
        .when(ready("a"))
        .then(refuse(2, "load_failed"))
    )


def test_leaving_during_a_rollback_lets_it_go_on() -> None:
    (
        Playbook("a", "b")
        .given_ready("a")
        .when(load(1, "b"))
        .then(stop("a"))
        .when(gone("a"))
        .then(start("b"))
        .when(dies("b", LOAD_FAILED))
        .then(start("a"))
        .when(cancel(1))
        .then(refuse(1, "cancelled"))
        .states(a=Status.LOADING)
        .when(ready("a"))
        .then()
        .states(a=Status.READY)
    )


def test_a_reload_that_is_taken_back_is_not_made_for_those_who_are_content() -> None:
    play = (
        running()
        .when(load(2, "a", ctx=8192))
        .then()
        .when(infer(3, "a"))
        .then()
        .when(cancel(2))
        .then(refuse(2, "cancelled"))
        .timers(clears(Clock.PATIENCE))
        .when(answered(1))
        .then(complete(1), grant(3, "a"))
    )
    assert play.state.switch is None


def test_cancelling_an_unload_that_is_under_way_does_not_bring_the_model_back() -> None:
    (
        Playbook("a")
        .given_ready("a")
        .when(unload(1, "a"))
        .then(stop("a"))
        .when(cancel(1, CANCELLED))
        .then(refuse(1, "cancelled"))
        .when(gone("a"))
        .then()
        .states(a=Status.COLD)
        .when(infer(2))
        .then(start("a"))
        .when(ready("a"))
        .then(grant(2, "a"))
    )


def test_a_request_that_waits_without_a_name_belongs_to_the_model_that_was_active_then() -> None:
    (
        Playbook("a", "b")
        .given_ready("a")
        .when(load(1, "b"))
        .then(stop("a"))
        .when(infer(2))
        .then()
        .when(gone("a"))
        .then(start("b"))
        .when(ready("b"))
        .then(remember("b"), resident(1, "b"), stop("b"))
        .when(gone("b"))
        .then(start("a"))
        .when(ready("a"))
        .then(remember("a"), grant(2, "a"))
    )
