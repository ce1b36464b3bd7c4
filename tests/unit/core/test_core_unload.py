"""Explicit unloads: idle, busy, loading, by force, and taken back."""

from h2qd.core.effects import Clock
from h2qd.core.records import Rules
from h2qd.core.states import Status
from tests.playbook import (
    CRASH,
    HELD,
    LOAD_FAILED,
    Playbook,
    answered,
    cancel,
    cold,
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
    start,
    stop,
    unload,
)


def draining() -> Playbook:
    """Model a runs request 1, request 2 wants it cold."""
    return (
        Playbook("a", "b")
        .given_ready("a")
        .when(infer(1, "a"))
        .then(grant(1, "a"))
        .when(unload(2, "a"))
        .then()
        .states(a=Status.DRAINING)
    )


def test_an_idle_model_is_unloaded_at_once_and_is_no_longer_active() -> None:
    (
        Playbook("a")
        .given_ready("a")
        .when(unload(1, "a"))
        .then(stop("a"))
        .when(unload(2, "a"))
        .then()
        .when(gone("a"))
        .then(remember(None), cold(1, "a", **{"released.freed_bytes": HELD}), cold(2, "a"))
        .when(infer(3))
        .then(refuse(3, "no_active_model"))
    )


def test_a_cold_model_is_unloaded_already() -> None:
    Playbook("a").when(unload(1, "a")).then(cold(1, "a", released=None)).states(a=Status.COLD)


def test_an_unload_ends_being_active_even_when_the_memory_was_gone_already() -> None:
    (
        Playbook("a")
        .given_ready("a")
        .when(dies("a"))
        .then()
        .when(unload(1, "a"))
        .then(remember(None), cold(1, "a", released=None))
    )


def test_a_busy_model_is_unloaded_when_its_work_has_ended() -> None:
    (
        draining()
        .when(infer(3, "a"))
        .then()
        .when(answered(1))
        .then(complete(1), stop("a"))
        .when(gone("a"))
        .then(remember(None), cold(2, "a"), start("a"))
        .when(ready("a"))
        .then(remember("a"), grant(3, "a"))
    )


def test_force_does_not_wait_for_the_work() -> None:
    draining().when(unload(3, "a", force=True)).then(halt(1, "a"), refuse(1, "unloaded"), stop("a"))


def test_an_unload_that_is_taken_back_lets_the_model_go_on() -> None:
    (
        draining()
        .when(infer(3, "a"))
        .then()
        .when(cancel(2))
        .then(refuse(2, "cancelled"))
        .states(a=Status.READY)
        .when(answered(1))
        .then(complete(1), grant(3, "a"))
    )


def test_one_of_two_unloads_taken_back_changes_nothing() -> None:
    (
        draining()
        .when(unload(3, "a"))
        .then()
        .when(cancel(2))
        .then(refuse(2, "cancelled"))
        .states(a=Status.DRAINING)
        .when(answered(1))
        .then(complete(1), stop("a"))
        .when(gone("a"))
        .then(remember(None), cold(3, "a"))
    )


def test_an_unload_taken_back_under_a_barrier_leaves_the_barrier() -> None:
    (
        draining()
        .when(load(3, "b"))
        .then()
        .when(fires(Clock.PATIENCE))
        .then()
        .when(cancel(2))
        .then(refuse(2, "cancelled"))
        .states(a=Status.DRAINING)
        .when(answered(1))
        .then(complete(1), stop("a"))
        .when(gone("a"))
        .then(start("b"))
    )


def test_an_unload_taken_back_in_patience_lets_the_model_admit_again() -> None:
    (
        draining()
        .when(load(3, "b"))
        .then()
        .when(cancel(2))
        .then(refuse(2, "cancelled"))
        .states(a=Status.READY)
        .when(fires(Clock.PATIENCE))
        .then()
        .states(a=Status.DRAINING)
    )


def test_a_switch_called_off_does_not_call_an_unload_off() -> None:
    (
        draining()
        .when(load(3, "b"))
        .then()
        .when(fires(Clock.PATIENCE))
        .then()
        .when(cancel(3))
        .then(refuse(3, "cancelled"))
        .states(a=Status.DRAINING)
        .when(answered(1))
        .then(complete(1), stop("a"))
    )


def test_unloading_what_loads_gives_the_load_up() -> None:
    (
        Playbook("a", "b")
        .when(load(1, "a"))
        .then(start("a"))
        .when(infer(2, "a"))
        .then()
        .when(unload(3, "a"))
        .then(refuse(1, "load_cancelled"), refuse(2, "load_cancelled"), stop("a", at_once=True))
        .states(a=Status.UNLOADING)
        .when(gone("a"))
        .then(cold(3, "a"))
    )


def test_unloading_the_target_before_it_loads_is_answered_and_the_load_goes_on() -> None:
    """The unload takes memory back, and there is none: who wanted the model resident still does."""
    (
        Playbook("a", "b")
        .given_ready("a")
        .when(load(1, "b"))
        .then(stop("a"))
        .when(unload(2, "b"))
        .then(cold(2, "b", released=None))
        .when(gone("a"))
        .then(start("b"))
    )


def test_a_load_asked_during_an_unload_follows_it() -> None:
    (
        Playbook("a")
        .given_ready("a")
        .when(unload(1, "a"))
        .then(stop("a"))
        .when(load(2, "a"))
        .then()
        .when(gone("a"))
        .then(remember(None), cold(1, "a"), start("a"))
        .when(ready("a"))
        .then(remember("a"), resident(2, "a", changed=True, was_active=None))
    )


def test_a_reload_asked_while_the_model_drains_for_an_unload_follows_it() -> None:
    (
        draining()
        .when(load(3, "a", ctx=8192))
        .then()
        .when(answered(1))
        .then(complete(1), stop("a"))
        .when(gone("a"))
        .then(remember(None), cold(2, "a"), start("a", ctx=8192))
    )


def test_an_unload_in_the_middle_of_a_reload_comes_first() -> None:
    (
        Playbook("a")
        .given_ready("a")
        .when(load(1, "a", ctx=8192))
        .then(stop("a"))
        .when(unload(2, "a"))
        .then()
        .when(gone("a"))
        .then(remember(None), cold(2, "a"), start("a", ctx=8192))
        .when(ready("a"))
        .then(remember("a"), resident(1, "a", was_active=None))
    )


def test_a_model_unloaded_on_purpose_is_not_rolled_back_to() -> None:
    (
        Playbook("a", "b")
        .given_ready("a")
        .when(unload(1, "a"))
        .then(stop("a"))
        .when(load(2, "b"))
        .then()
        .when(gone("a"))
        .then(remember(None), cold(1, "a"), start("b"))
        .when(dies("b", LOAD_FAILED))
        .then(refuse(2, "load_failed"))
        .states(a=Status.COLD, b=Status.FAILED)
    )


def test_an_unload_of_the_old_model_while_the_new_one_loads_bars_the_rollback() -> None:
    (
        Playbook("a", "b")
        .given_ready("a")
        .when(load(1, "b"))
        .then(stop("a"))
        .when(gone("a"))
        .then(start("b"))
        .when(unload(2, "a"))
        .then(remember(None), cold(2, "a", released=None))
        .when(dies("b", LOAD_FAILED))
        .then(refuse(1, "load_failed"))
        .states(a=Status.COLD, b=Status.FAILED)
    )


def test_unloading_the_old_model_during_its_rollback_ends_the_rollback() -> None:
    (
        Playbook("a", "b")
        .given_ready("a")
        .when(load(1, "b"))
        .then(stop("a"))
        .when(gone("a"))
        .then(start("b"))
        .when(infer(2, "a"))
        .then()
        .when(dies("b", LOAD_FAILED))
        .then(start("a"))
        .when(unload(3, "a"))
        .then(refuse(2, "load_cancelled"), refuse(1, "load_failed"), stop("a", at_once=True))
        .when(load(4, "b"))
        .then()
        .when(gone("a"))
        .then(remember(None), cold(3, "a"), start("b"))
    )


def test_a_crash_while_an_unload_waits_answers_it() -> None:
    (
        draining()
        .when(dies("a", CRASH))
        .then(remember(None), refuse(1, "worker_crashed"), cold(2, "a", released=None))
        .states(a=Status.COLD)
    )


def test_an_unload_is_not_kept_out_by_a_crowd() -> None:
    (
        Playbook("a", rules=Rules(queue_max=2))
        .given_ready("a")
        .when(infer(1, "a"))
        .then(grant(1, "a"))
        .when(infer(2, "a"))
        .then()
        .when(infer(3, "a"))
        .then()
        .when(infer(4, "a"))
        .then(refuse(4, "queue_full", retry_after_s=1.0))
        .when(unload(5, "a"))
        .then()
        .states(a=Status.DRAINING)
        .when(load(6, "a"))
        .then()
        .when(unload(7, "a"))
        .then()
        .when(unload(8, "a"))
        .then(refuse(8, "queue_full"))
    )


def test_an_unload_of_a_failed_model_is_answered() -> None:
    (
        Playbook("a")
        .when(load(1, "a"))
        .then(start("a"))
        .when(dies("a", LOAD_FAILED))
        .then(refuse(1, "load_failed"))
        .when(unload(2, "a"))
        .then(cold(2, "a", released=None))
        .states(a=Status.FAILED)
    )
