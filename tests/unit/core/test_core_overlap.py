"""A busy switch where there is room for both: the new model loads beside the old one, which goes after its work."""

from h2qd.core.effects import Clock
from h2qd.core.records import Phase, Rules
from h2qd.core.states import Status
from tests.playbook import (
    GIB,
    HELD,
    LOAD_FAILED,
    Playbook,
    answered,
    cancel,
    clears,
    cold,
    complete,
    dies,
    fires,
    forget,
    gone,
    grant,
    halt,
    infer,
    limit,
    load,
    notice,
    parked,
    parks,
    plan_bytes,
    read,
    ready,
    refuse,
    remember,
    resident,
    sets,
    start,
    stop,
    stop_asked,
    trims,
    unload,
)


def overlapping(rules: Rules | None = None) -> Playbook:
    """Model a works on request 1 while b loads for request 2."""
    play = (
        Playbook("a", "b", "c", rules=rules, limit_bytes=16 * GIB)
        .given_ready("a")
        .later(10.0)
        .when(infer(1, "a"))
        .then(grant(1, "a"))
        .when(load(2, "b"))
        .then(start("b"))
        .timers()
        .notices(notice("model.moved", "b"), notice("switch.phase", "b"))
        .states(a=Status.READY, b=Status.LOADING)
    )
    assert play.state.switch is not None
    assert (play.state.switch.phase, play.state.switch.overlapped) == (Phase.LOAD, ("a",))
    return play


def test_the_old_model_serves_on_while_the_new_one_loads_and_goes_once_its_work_has_ended() -> None:
    (
        overlapping()
        .when(infer(3, "a"))
        .then()
        .when(answered(1))
        .then(complete(1), grant(3, "a"))
        .when(ready("b"))
        .then(remember("b"), resident(2, "b", was_active="a", released=(), draining=("a",)))
        .states(a=Status.DRAINING, b=Status.READY)
        .when(infer(4, "b"))
        .then(grant(4, "b"))
        .when(answered(3))
        .then(complete(3), stop("a"))
        .when(gone("a"))
        .then()
        .states(a=Status.COLD, b=Status.READY)
    )


def test_an_old_model_that_is_idle_by_then_goes_at_once() -> None:
    overlapping().when(answered(1)).then(complete(1)).when(ready("b")).then(
        remember("b"), stop("a"), resident(2, "b", draining=("a",))
    )


def test_an_idle_old_model_goes_first_though_there_were_room() -> None:
    Playbook("a", "b", limit_bytes=16 * GIB).given_ready("a").when(load(1, "b")).then(stop("a"))


def test_there_is_no_overlap_where_the_device_has_no_room_now() -> None:
    play = Playbook("a", "b", limit_bytes=16 * GIB).given_ready("a").later(10.0)
    play.when(read(0.7, available=GIB)).then()
    play.when(infer(1, "a")).then(grant(1, "a")).when(load(2, "b")).then().timers(sets(Clock.PATIENCE, at=1012.0))
    play.when(answered(1)).then(complete(1), stop("a"))


def test_room_that_comes_while_the_switch_is_patient_is_used() -> None:
    play = Playbook("a", "b", limit_bytes=16 * GIB).given_ready("a").later(10.0)
    play.when(read(0.7, available=GIB)).then()
    play.when(infer(1, "a")).then(grant(1, "a")).when(load(2, "b")).then()
    play.when(read(0.5, available=plan_bytes())).then()
    play.when(read(0.5, available=2 * GIB)).then(start("b")).timers(clears(Clock.PATIENCE))
    play.when(ready("b")).then(remember("b"), resident(2, "b", draining=("a",))).states(a=Status.DRAINING)


def test_a_load_that_fails_leaves_the_old_model_as_it_was() -> None:
    play = (
        overlapping()
        .when(dies("b", LOAD_FAILED))
        .then(refuse(2, "load_failed", because=("nothing changed: a stayed",)))
        .states(a=Status.READY, b=Status.FAILED)
        .when(infer(3))
        .then()
        .when(answered(1))
        .then(complete(1), grant(3, "a"))
    )
    assert play.state.active == "a"


def test_a_load_that_fails_after_the_old_model_crashed_does_not_say_that_it_stayed() -> None:
    (
        overlapping()
        .when(dies("a"))
        .then(refuse(1, "worker_crashed"))
        .when(forget(3, "a"))
        .then(refuse(3, "in_use"))
        .when(dies("b", LOAD_FAILED))
        .then(refuse(2, "load_failed", because=()))
    )


def test_an_old_model_that_crashed_meanwhile_is_no_obstacle() -> None:
    (
        overlapping()
        .when(dies("a"))
        .then(refuse(1, "worker_crashed"))
        .when(ready("b"))
        .then(remember("b"), resident(2, "b"))
        .states(a=Status.COLD, b=Status.READY)
    )


def test_a_load_that_nobody_waits_for_any_more_is_given_up_and_the_old_model_stays() -> None:
    (
        overlapping()
        .when(cancel(2))
        .then(refuse(2, "cancelled"), stop("b", at_once=True))
        .when(infer(3, "a"))
        .then()
        .when(gone("b"))
        .then()
        .when(answered(1))
        .then(complete(1), grant(3, "a"))
    )


def test_an_unload_of_the_old_model_meanwhile_is_done() -> None:
    (
        overlapping()
        .when(unload(3, "a"))
        .then()
        .states(a=Status.DRAINING)
        .when(answered(1))
        .then(complete(1), stop("a"))
        .when(ready("b"))
        .then(remember("b"), resident(2, "b"))
        .when(gone("a"))
        .then(cold(3, "a"))
    )


def test_an_old_model_that_drains_for_an_unload_goes_once() -> None:
    (
        overlapping()
        .when(unload(3, "a"))
        .then()
        .when(ready("b"))
        .then(remember("b"), resident(2, "b", draining=("a",)))
        .when(cancel(3))
        .then(refuse(3, "cancelled"))
        .states(a=Status.DRAINING)
        .when(answered(1))
        .then(complete(1), stop("a"))
    )


def test_an_old_model_is_parked_where_the_rules_say_so_and_it_is_not_wanted_cold() -> None:
    parking = Rules(park_s=60.0)
    play = overlapping(parking).when(ready("b")).then(remember("b"), resident(2, "b"))
    play.when(answered(1)).then(complete(1), parks("a")).when(parked("a")).then().states(a=Status.PARKED)
    play = overlapping(parking).when(answered(1)).then(complete(1))
    play.when(ready("b")).then(remember("b"), parks("a"), resident(2, "b"))
    play = overlapping(parking).when(ready("b")).then(remember("b"), resident(2, "b")).when(unload(3, "a")).then()
    play.when(answered(1)).then(complete(1), stop("a"))
    play = overlapping(parking).when(read(0.85)).then(trims()).when(ready("b")).then(remember("b"), resident(2, "b"))
    play.when(answered(1)).then(complete(1), stop("a"))


def test_the_way_back_waits_until_the_old_model_is_gone() -> None:
    """Model a leaves for b when somebody wants it again: it goes all the same, then comes back beside a busy b.

    But not before b has had its time.
    """
    (
        overlapping()
        .when(ready("b"))
        .then(remember("b"), resident(2, "b"))
        .when(infer(3, "b", client=3))
        .then(grant(3, "b"))
        .when(infer(4, "a", client=4))
        .then()
        .when(answered(1))
        .then(complete(1), stop("a"))
        .timers(sets(Clock.PATIENCE, at=1012.0))
        .when(gone("a"))
        .then()
        .when(fires(Clock.PATIENCE))
        .then(start("a"))
        .states(a=Status.LOADING, b=Status.READY)
        .when(ready("a"))
        .then(remember("a"), grant(4, "a"))
        .states(a=Status.READY, b=Status.DRAINING)
    )


def test_a_third_model_waits_for_memory_that_is_on_its_way_back() -> None:
    (
        overlapping()
        .when(ready("b"))
        .then(remember("b"), resident(2, "b"))
        .when(answered(1))
        .then(complete(1), stop("a"))
        .when(infer(3, "b"))
        .then(grant(3, "b"))
        .later(10.0)
        .when(load(4, "c"))
        .then()
        .timers(sets(Clock.PATIENCE, at=1022.0))
        .when(gone("a"))
        .then(start("c"))
        .timers(clears(Clock.PATIENCE))
    )


def test_force_does_not_cut_off_what_need_not_go() -> None:
    (
        Playbook("a", "b", limit_bytes=16 * GIB)
        .given_ready("a")
        .later(10.0)
        .when(infer(1, "a"))
        .then(grant(1, "a"))
        .when(load(2, "b", force=True))
        .then(start("b"))
    )


def test_a_stop_meanwhile_ends_both() -> None:
    (
        overlapping()
        .when(stop_asked())
        .then(refuse(2, "shutting_down"), stop("b", at_once=True))
        .states(a=Status.DRAINING, b=Status.UNLOADING)
        .when(answered(1))
        .then(complete(1), stop("a"))
    )


def test_a_leaving_model_that_crashes_is_gone() -> None:
    play = overlapping().when(ready("b")).then(remember("b"), resident(2, "b"))
    play.when(dies("a")).then(refuse(1, "worker_crashed")).states(a=Status.COLD)
    assert play.state.models["a"].leaving == ""


def test_an_unload_by_force_of_a_leaving_model_ends_its_work() -> None:
    play = overlapping().when(ready("b")).then(remember("b"), resident(2, "b"))
    play.when(unload(3, "a", force=True)).then(halt(1, "a"), refuse(1, "unloaded"), stop("a"))
    play.when(gone("a")).then(cold(3, "a"))


def test_a_budget_that_falls_while_the_switch_is_patient_refuses_what_does_not_fit() -> None:
    play = Playbook("a", "b").given_ready("a").when(infer(1, "a")).then(grant(1, "a")).when(load(2, "b")).then()
    play.when(limit(HELD)).then(refuse(2, "no_fit")).timers(clears(Clock.PATIENCE))
    assert play.state.switch is None
    play.when(answered(1)).then(complete(1)).states(a=Status.READY)
