"""Loads that fail, workers that crash: rollback, back-off, the breaker, and how each is left behind."""

import pytest

from h2qd.core.effects import Clock
from h2qd.core.records import Rules
from h2qd.core.states import Status
from tests.playbook import (
    CRASH,
    GIB,
    LOAD_FAILED,
    Playbook,
    cancel,
    dies,
    fires,
    gone,
    grant,
    halt,
    infer,
    limit,
    load,
    ready,
    refuse,
    remember,
    resident,
    start,
    stop,
)

WHY = LOAD_FAILED.message


def switching() -> Playbook:
    """Model a was resident; request 1 has b loading."""
    return (
        Playbook("a", "b", "c")
        .given_ready("a")
        .when(load(1, "b"))
        .then(stop("a"))
        .when(gone("a"))
        .then(start("b"))
        .states(b=Status.LOADING)
    )


# --- loads that fail ---------------------------------------------------------------------------------


def test_a_load_into_free_memory_that_fails_is_refused() -> None:
    (
        Playbook("a")
        .when(load(1, "a"))
        .then(start("a"))
        .when(infer(2, "a"))
        .then()
        .when(dies("a", LOAD_FAILED))
        .then(refuse(1, "load_failed", message=WHY, because=()), refuse(2, "load_failed"))
        .states(a=Status.FAILED)
    )


def test_a_switch_that_fails_brings_the_old_model_back() -> None:
    (
        switching()
        .when(infer(2, "b"))
        .then()
        .when(infer(3, "a"))
        .then()
        .when(dies("b", LOAD_FAILED))
        .then(refuse(2, "load_failed", because=()), start("a"))
        .states(a=Status.LOADING, b=Status.FAILED)
        .when(ready("a"))
        .then(
            refuse(1, "load_failed", message=WHY, because=("rolled back: a is resident again",)),
            grant(3, "a"),
        )
        .states(a=Status.READY)
    )


def test_a_rollback_that_fails_too_says_both() -> None:
    (
        switching()
        .when(infer(2, "a"))
        .then()
        .when(infer(3, "c"))
        .then()
        .when(dies("b", LOAD_FAILED))
        .then(start("a"))
        .when(dies("a", CRASH))
        .then(
            refuse(1, "load_failed", because=(f"and so did the rollback: {CRASH.message}",)),
            refuse(2, "worker_crashed"),
            start("c"),
        )
        .states(a=Status.FAILED, b=Status.FAILED, c=Status.LOADING)
    )


def test_a_load_asked_during_the_rollback_tries_again_after_it() -> None:
    (
        switching()
        .when(dies("b", LOAD_FAILED))
        .then(start("a"))
        .when(infer(2, "b"))
        .then(refuse(2, "model_failed", retry_after_s=0.5))
        .when(load(3, "b"))
        .then()
        .when(ready("a"))
        .then(refuse(1, "load_failed"), stop("a"))
        .when(gone("a"))
        .then(start("b"))
        .when(ready("b"))
        .then(remember("b"), resident(3, "b", was_active="a"))
    )


def test_a_reload_that_fails_brings_the_old_context_back() -> None:
    (
        Playbook("a")
        .given_ready("a")
        .when(load(1, "a", ctx=8192))
        .then(stop("a"))
        .when(infer(2, "a"))
        .then()
        .when(infer(3, "a", ctx=8192))
        .then()
        .when(load(4, "a"))
        .then()
        .when(load(5, "a", ctx=4096))
        .then()
        .when(gone("a"))
        .then(start("a", ctx=8192))
        .when(dies("a", LOAD_FAILED))
        .then(refuse(3, "load_failed"), start("a", ctx=4096))
        .when(ready("a"))
        .then(
            refuse(1, "load_failed", because=("rolled back: a is resident again",)),
            resident(4, "a", changed=False, ctx=4096),
            resident(5, "a", changed=False, ctx=4096),
            grant(2, "a"),
        )
    )


def test_the_rollback_of_a_reload_asks_for_what_was_asked_not_for_what_was_given() -> None:
    (
        Playbook("a")
        .when(load(1, "a", ctx=5000))
        .then(start("a", ctx=5000))
        .when(ready("a", ctx=5120))
        .then(remember("a"), resident(1, "a"))
        .when(load(2, "a", ctx=8192))
        .then(stop("a"))
        .when(gone("a"))
        .then(start("a", ctx=8192))
        .when(dies("a", LOAD_FAILED))
        .then(start("a", ctx=5000))
    )


def test_what_failed_just_now_is_not_its_own_rollback() -> None:
    """A hung worker was killed; loading the same model with the same context again fails: once is enough."""
    (
        Playbook("a")
        .given_ready("a")
        .when(infer(1, "a"))
        .then(grant(1, "a"))
        .when(infer(2, "a"))
        .then()
        .when(cancel(1))
        .then(halt(1, "a"))
        .when(fires(Clock.CANCEL))
        .then(refuse(1, "cancelled"), stop("a", at_once=True))
        .when(gone("a"))
        .then(start("a"))
        .when(dies("a", LOAD_FAILED))
        .then(refuse(2, "load_failed", because=()))
        .states(a=Status.FAILED)
    )


def test_no_rollback_to_what_is_broken() -> None:
    play = Playbook("a", "b", rules=Rules(breaker_count=1)).given_ready("a")
    (
        play.when(infer(1, "a"))
        .then(grant(1, "a"))
        .when(load(2, "b"))
        .then()
        .when(dies("a", CRASH))
        .then(refuse(1, "worker_crashed"), start("b"))
        .states(a=Status.FAILED)
        .when(dies("b", LOAD_FAILED))
        .then(refuse(2, "load_failed", because=()))
    )


def test_no_rollback_to_what_no_longer_fits() -> None:
    (
        switching()
        .when(limit(GIB // 2))
        .then()
        .when(dies("b", LOAD_FAILED))
        .then(refuse(1, "load_failed", because=()))
        .states(a=Status.COLD)
    )


def test_a_model_that_crashed_before_the_switch_began_is_not_rolled_back_to() -> None:
    """It held no memory when the switch began: nothing was taken from anybody."""
    (
        Playbook("a", "b")
        .given_ready("a")
        .when(dies("a"))
        .then()
        .when(load(1, "b"))
        .then(start("b"))
        .when(dies("b", LOAD_FAILED))
        .then(refuse(1, "load_failed"))
        .states(a=Status.COLD)
    )


# --- crashes -----------------------------------------------------------------------------------------


def test_a_first_crash_costs_nothing() -> None:
    (
        Playbook("a")
        .given_ready("a")
        .when(infer(1, "a"))
        .then(grant(1, "a"))
        .when(infer(2, "a"))
        .then()
        .when(dies("a"))
        .then(refuse(1, "worker_crashed"), start("a"))
        .when(ready("a"))
        .then(grant(2, "a"))
    )


def test_a_crash_of_an_idle_model_is_noticed_and_left_at_that() -> None:
    play = Playbook("a").given_ready("a").when(dies("a")).then().states(a=Status.COLD)
    assert play.state.models["a"].reason == CRASH.message
    assert play.state.active == "a"
    play.when(infer(1)).then(start("a"))


def test_a_second_crash_in_a_row_is_held_back_for_those_who_wait() -> None:
    (
        Playbook("a")
        .given_ready("a")
        .when(dies("a"))
        .then()
        .when(infer(1, "a"))
        .then(start("a"))
        .when(ready("a"))
        .then(grant(1, "a"))
        .when(infer(2, "a"))
        .then()
        .when(infer(3, "a"))
        .then()
        .when(dies("a"))
        .then(
            refuse(1, "worker_crashed"),
            refuse(2, "model_failed", retry_after_s=1.0, because=(f"last failure: {CRASH.message}",)),
            refuse(3, "model_failed"),
        )
        .states(a=Status.FAILED)
        .later(1.0)
        .when(infer(4, "a"))
        .then(start("a"))
    )


def test_a_model_held_back_does_not_hold_up_the_others() -> None:
    (
        Playbook("a", "b")
        .given_ready("a")
        .when(dies("a"))
        .then()
        .when(infer(1, "a"))
        .then(start("a"))
        .when(ready("a"))
        .then(grant(1, "a"))
        .when(infer(2, "b"))
        .then()
        .when(infer(3, "a"))
        .then()
        .when(dies("a"))
        .then(refuse(1, "worker_crashed"), start("b"))
        .states(a=Status.FAILED)
        .when(ready("b"))
        .then(remember("b"), grant(2, "b"), refuse(3, "model_failed"))
    )


def test_a_crash_after_a_stable_time_is_a_first_crash_again() -> None:
    (
        Playbook("a")
        .given_ready("a")
        .when(dies("a"))
        .then()
        .when(load(1, "a"))
        .then(start("a"))
        .when(ready("a"))
        .then(resident(1, "a"))
        .later(30.0)
        .when(dies("a"))
        .then()
        .states(a=Status.COLD)
    )


def test_the_stable_time_counts_from_the_load_whatever_came_between() -> None:
    """A barrier that was put up and taken down again does not make a model any younger."""
    (
        Playbook("a", "b")
        .given_ready("a")
        .when(dies("a"))
        .then()
        .when(infer(1, "a"))
        .then(start("a"))
        .when(ready("a"))
        .then(grant(1, "a"))
        .later(29.0)
        .when(load(2, "b"))
        .then()
        .when(fires(Clock.PATIENCE))
        .then()
        .when(cancel(2))
        .then(refuse(2, "cancelled"))
        .states(a=Status.READY)
        .when(dies("a"))
        .then(refuse(1, "worker_crashed"))
        .states(a=Status.COLD)
    )


# --- back-off and breaker ----------------------------------------------------------------------------


def fail_to_load(play: Playbook, request: int, *, reset: bool = False) -> float:
    """One explicit load that fails; the seconds for which the model is then left alone."""
    play.when(load(request, "a", reset=reset)).then(start("a"))
    play.when(dies("a", LOAD_FAILED)).then(refuse(request, "load_failed"))
    return play.state.models["a"].retry_at - play.now


def test_failures_in_a_row_wait_twice_as_long_each_time_until_the_breaker_opens() -> None:
    play = Playbook("a")
    assert [fail_to_load(play, request) for request in range(1, 6)] == [0.5, 1.0, 2.0, 4.0, 30.0]
    play.when(load(6, "a")).then(
        refuse(6, "model_failed", retry_after_s=30.0, because=(f"last failure: {LOAD_FAILED.message}",))
    )
    play.later(30.0)
    assert fail_to_load(play, 7) == 30.0
    play.later(29.9).when(load(8, "a")).then(refuse(8, "model_failed"))


def test_the_wait_has_an_upper_bound() -> None:
    play = Playbook("a", rules=Rules(breaker_count=50, backoff_max_s=3.0))
    assert [fail_to_load(play, request) for request in range(1, 6)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_failures_long_ago_do_not_count() -> None:
    play = Playbook("a")
    for request in range(1, 5):
        fail_to_load(play, request)
        play.later(59.0)
    assert fail_to_load(play, 5) == 1.0


def test_an_implicit_load_waits_for_the_back_off_and_an_explicit_one_does_not() -> None:
    play = Playbook("a")
    fail_to_load(play, 1)
    (
        play.when(infer(2, "a"))
        .then(refuse(2, "model_failed", message="cannot use a: it failed lately and is left alone for 0.5 s more"))
        .later(0.5)
        .when(infer(3, "a"))
        .then(start("a"))
        .when(dies("a", LOAD_FAILED))
        .then(refuse(3, "load_failed"))
        .when(infer(4, "a"))
        .then(refuse(4, "model_failed", message="cannot use a: it failed 2 times and is left alone for 1.0 s more"))
        .when(load(5, "a"))
        .then(start("a"))
    )


def test_a_reset_clears_the_slate() -> None:
    play = Playbook("a")
    for request in range(1, 6):
        fail_to_load(play, request)
    assert play.state.models["a"].broken
    assert fail_to_load(play, 6, reset=True) == 0.5
    play.when(load(7, "a", reset=True)).then(start("a")).when(ready("a")).then(remember("a"), resident(7, "a"))


def test_a_reset_shows_at_once_even_when_the_load_has_to_wait() -> None:
    (
        Playbook("a", "b")
        .when(load(1, "a"))
        .then(start("a"))
        .when(dies("a", LOAD_FAILED))
        .then(refuse(1, "load_failed"))
        .when(load(2, "b"))
        .then(start("b"))
        .when(load(3, "a", reset=True))
        .then()
        .states(a=Status.COLD, b=Status.LOADING)
    )


def test_a_reset_of_a_model_that_is_well_changes_nothing_but_its_past() -> None:
    play = Playbook("a").given_ready("a").when(dies("a")).then()
    play.when(load(1, "a")).then(start("a")).when(ready("a")).then(resident(1, "a"))
    assert play.state.models["a"].failures != ()
    play.when(load(2, "a", reset=True)).then(resident(2, "a", changed=False)).states(a=Status.READY)
    assert play.state.models["a"].failures == ()


def test_a_breaker_of_one_opens_at_the_first_crash() -> None:
    (
        Playbook("a", rules=Rules(breaker_count=1))
        .given_ready("a")
        .when(dies("a"))
        .then()
        .states(a=Status.FAILED)
        .when(load(1, "a"))
        .then(refuse(1, "model_failed", retry_after_s=30.0))
    )


def test_a_reload_of_a_model_that_breaks_meanwhile_is_refused() -> None:
    """Model a crashes while it drains for its own reload, once too often."""
    (
        Playbook("a", rules=Rules(breaker_count=1))
        .given_ready("a")
        .when(infer(1, "a"))
        .then(grant(1, "a"))
        .when(load(2, "a", ctx=8192))
        .then()
        .when(dies("a"))
        .then(refuse(1, "worker_crashed"), refuse(2, "model_failed"))
        .states(a=Status.FAILED)
    )


@pytest.mark.parametrize("shrunk", [GIB // 2, GIB])
def test_a_limit_that_falls_while_a_load_waits_refuses_it(shrunk: int) -> None:
    (
        Playbook("a", "b", "c")
        .given_ready("a")
        .when(load(1, "b"))
        .then(stop("a"))
        .when(load(2, "c"))
        .then()
        .when(limit(shrunk))
        .then()
        .when(gone("a"))
        .then(refuse(1, "no_fit"), refuse(2, "no_fit"))
        .states(a=Status.COLD, b=Status.COLD, c=Status.COLD)
    )
