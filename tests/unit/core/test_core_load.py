"""Loading into free memory, and what a resident model does for whoever asks."""

from h2qd.core.effects import Clock
from h2qd.core.plan import ModelShape
from h2qd.core.records import Rules
from h2qd.core.states import Status
from tests.playbook import (
    CRASH,
    GIB,
    MIB,
    Playbook,
    answered,
    cancel,
    cold,
    complete,
    dies,
    fires,
    gone,
    grant,
    infer,
    load,
    measured,
    notice,
    ready,
    refuse,
    registered,
    remember,
    resident,
    sets,
    start,
    stop,
    unload,
)

ROUNDED = 5120
"""What a worker makes of 5,000 tokens of context: whole blocks."""


def test_a_load_from_cold() -> None:
    (
        Playbook("a")
        .when(load(1, "a"))
        .then(start("a", ctx=4096))
        .states(a=Status.LOADING)
        .when(ready("a", held=3 * GIB))
        .then(
            remember("a"),
            resident(1, "a", changed=True, ctx=4096, held_bytes=3 * GIB, load_s=0.5, released=(), was_active=None),
        )
        .notices(notice("model.moved", "a"))
        .states(a=Status.READY)
    )


def test_the_plan_is_spoken_for_while_the_model_loads_and_measured_after() -> None:
    play = Playbook("a").when(load(1, "a")).then(start("a"))
    planned = play.state.models["a"].planned_bytes
    assert planned > GIB + 4096 * 16 * 1024
    play.when(ready("a", held=GIB)).then(remember("a"), resident(1, "a"))
    play.when(measured("a", 2 * GIB)).then()
    assert play.state.models["a"].held_bytes == 2 * GIB
    assert play.state.models["a"].planned_bytes == planned


def test_a_load_of_what_is_resident_changes_nothing() -> None:
    (
        Playbook("a")
        .given_ready("a")
        .when(load(1, "a"))
        .then(resident(1, "a", changed=False, was_active="a"))
        .when(load(2, "a", ctx=4096))
        .then(resident(2, "a", changed=False))
    )


def test_inference_on_a_cold_model_loads_it_first() -> None:
    (
        Playbook("a")
        .when(infer(1, "a"))
        .then(start("a"))
        .when(ready("a"))
        .then(remember("a"), grant(1, "a"))
        .when(answered(1))
        .then(complete(1))
        .states(a=Status.READY)
    )


def test_inference_without_a_name_goes_to_the_active_model() -> None:
    (
        Playbook("a", "b")
        .given_ready("b")
        .when(infer(1))
        .then(grant(1, "b"))
        .when(answered(1))
        .then(complete(1))
        .when(load(2))
        .then(resident(2, "b", changed=False))
    )


def test_everybody_who_wants_the_same_model_joins_one_load() -> None:
    play = Playbook("a").when(load(1, "a")).then(start("a"))
    for request in range(2, 10):
        play.when(load(request, "a")).then()
    play.when(infer(10, "a")).then()
    play.when(infer(11, "a")).then()
    play.when(ready("a")).then(
        remember("a"), *(resident(request, "a", changed=True) for request in range(1, 10)), grant(10, "a")
    )
    play.when(answered(10)).then(complete(10), grant(11, "a"))


def test_slots_run_that_many_at_once() -> None:
    (
        Playbook("a", rules=Rules(slots=2))
        .given_ready("a")
        .when(infer(1, "a"))
        .then(grant(1, "a"))
        .when(infer(2, "a"))
        .then(grant(2, "a"))
        .when(infer(3, "a"))
        .then()
        .when(answered(1))
        .then(complete(1), grant(3, "a"))
    )


def test_another_context_is_a_reload_of_the_same_model() -> None:
    (
        Playbook("a")
        .given_ready("a")
        .when(load(1, "a", ctx=8192))
        .then(stop("a"))
        .states(a=Status.UNLOADING)
        .when(gone("a"))
        .then(start("a", ctx=8192))
        .when(ready("a"))
        .then(resident(1, "a", changed=True, ctx=8192, was_active="a"))
    )


def test_a_context_beyond_what_the_model_was_made_for_is_cut_to_it() -> None:
    (
        Playbook("a", limit_bytes=4 * GIB)
        .when(load(1, "a", ctx=999_999))
        .then(start("a", ctx=131072))
        .when(ready("a"))
        .then(remember("a"), resident(1, "a", ctx=131072))
        .when(load(2, "a", ctx=500_000))
        .then(resident(2, "a", changed=False))
    )


def test_a_model_that_states_no_length_gets_what_is_asked() -> None:
    (
        Playbook()
        .when(registered("a", shape=ModelShape(tensor_bytes=MIB), ctx=2048))
        .then()
        .when(load(1, "a"))
        .then(start("a", ctx=2048))
    )


def test_a_worker_that_rounds_the_context_satisfies_whoever_asked() -> None:
    (
        Playbook("a")
        .when(load(1, "a", ctx=5000))
        .then(start("a", ctx=5000))
        .when(ready("a", ctx=ROUNDED))
        .then(remember("a"), resident(1, "a", ctx=ROUNDED))
        .when(load(2, "a", ctx=5000))
        .then(resident(2, "a", changed=False))
        .when(load(3, "a", ctx=ROUNDED))
        .then(resident(3, "a", changed=False))
        .when(load(4, "a", ctx=5001))
        .then(stop("a"))
    )


def test_joined_loads_with_another_context_get_theirs_after() -> None:
    (
        Playbook("a")
        .when(load(1, "a", ctx=2048))
        .then(start("a", ctx=2048))
        .when(load(2, "a", ctx=1024))
        .then()
        .when(ready("a"))
        .then(remember("a"), resident(1, "a", ctx=2048), stop("a"))
        .when(gone("a"))
        .then(start("a", ctx=1024))
        .when(ready("a"))
        .then(resident(2, "a", ctx=1024))
    )


def test_inference_with_a_context_waits_for_that_context() -> None:
    (
        Playbook("a")
        .given_ready("a")
        .when(infer(1, "a", ctx=8192))
        .then(stop("a"))
        .when(gone("a"))
        .then(start("a", ctx=8192))
        .when(ready("a"))
        .then(grant(1, "a"))
    )


def test_a_default_context_that_does_not_fit_does_not_bar_a_resident_smaller_one() -> None:
    """The default needs 2 GiB of cache; the operator chose less, and that is there to be used."""
    big = 131072
    (
        Playbook(limit_bytes=3 * GIB)
        .when(registered("a", ctx=big))
        .then()
        .when(infer(1, "a"))
        .then(refuse(1, "no_fit"))
        .when(load(2, "a", ctx=4096))
        .then(start("a", ctx=4096))
        .when(infer(3, "a"))
        .then()
        .when(ready("a"))
        .then(remember("a"), resident(2, "a"), grant(3, "a"))
        .when(load(4, "a"))
        .then(resident(4, "a", changed=False))
    )


def test_the_context_is_the_one_of_who_still_wants_the_load() -> None:
    """Who began the switch is gone when the memory is back: the load is for who stayed."""
    (
        Playbook("a", "b")
        .given_ready("a")
        .when(load(1, "b", ctx=2048))
        .then(stop("a"))
        .when(load(2, "b", ctx=1024))
        .then()
        .when(cancel(1))
        .then(refuse(1, "cancelled"))
        .when(gone("a"))
        .then(start("b", ctx=1024))
        .when(ready("b"))
        .then(remember("b"), resident(2, "b", ctx=1024))
    )


def test_a_load_whose_waiters_all_leave_is_given_up() -> None:
    (
        Playbook("a")
        .when(infer(1, "a"))
        .then(start("a"))
        .when(load(2, "a"))
        .then()
        .when(cancel(1))
        .then(refuse(1, "cancelled"))
        .when(cancel(2))
        .then(refuse(2, "cancelled"), stop("a", at_once=True))
        .states(a=Status.UNLOADING)
        .when(gone("a"))
        .then()
        .states(a=Status.COLD)
    )


def test_a_request_that_comes_after_a_load_was_given_up_gets_a_new_one() -> None:
    (
        Playbook("a", "b")
        .when(load(1, "a", ctx=8192))
        .then(start("a", ctx=8192))
        .when(cancel(1))
        .then(refuse(1, "cancelled"), stop("a", at_once=True))
        .when(infer(2, "a"))
        .then()
        .when(load(3, "b"))
        .then()
        .when(gone("a"))
        .then(start("a", ctx=4096))
        .when(ready("a"))
        .then(remember("a"), grant(2, "a"))
        .when(answered(2))
        .then(complete(2), stop("a"))
        .when(gone("a"))
        .then(start("b"))
    )


def test_a_worker_that_says_ready_after_its_load_was_given_up_is_not_used() -> None:
    (
        Playbook("a")
        .when(infer(1, "a"))
        .then(start("a"))
        .when(cancel(1))
        .then(refuse(1, "cancelled"), stop("a", at_once=True))
        .when(ready("a"))
        .then()
        .states(a=Status.UNLOADING)
    )


def test_a_deadline_passes_in_line_and_ends_the_load() -> None:
    (
        Playbook("a")
        .when(infer(1, "a", deadline=1003.0))
        .then(start("a"))
        .timers(sets(Clock.DEADLINE, at=1003.0))
        .when(fires(Clock.DEADLINE))
        .then(refuse(1, "deadline_exceeded"), stop("a", at_once=True))
        .when(gone("a"))
        .then()
    )


def test_a_load_that_dies_after_it_was_given_up_is_no_failure() -> None:
    play = (
        Playbook("a")
        .when(infer(1, "a"))
        .then(start("a"))
        .when(unload(2, "a"))
        .then(refuse(1, "load_cancelled"), stop("a", at_once=True))
        .when(dies("a", CRASH))
        .then(cold(2, "a"))
        .states(a=Status.COLD)
    )
    assert play.state.models["a"].failures == ()
