"""Parked models: the process stays without its context, costs little, and is back in no time."""

from dataclasses import replace

from h2qd.core.effects import Clock
from h2qd.core.records import Memory, Rules
from h2qd.core.states import Status
from tests.playbook import (
    GIB,
    HELD,
    LOAD_FAILED,
    MIB,
    SHAPE,
    Playbook,
    answered,
    clears,
    cold,
    complete,
    dies,
    fires,
    forget,
    gone,
    grant,
    infer,
    kept,
    load,
    notice,
    parked,
    parks,
    pin,
    pinned_told,
    plan_bytes,
    read,
    ready,
    refuse,
    registered,
    remember,
    resident,
    resume,
    sets,
    start,
    stop,
    stop_asked,
    trims,
    unload,
)

PARKING = Rules(park_s=60.0)
STILL = HELD // 8
"""What a parked worker of a playbook holds."""


def parking(rules: Rules = PARKING, limit_bytes: int = 2 * GIB) -> Playbook:
    """Model a has to go for b, and keeps its process."""
    return (
        Playbook("a", "b", "c", rules=rules, limit_bytes=limit_bytes)
        .given_ready("a")
        .when(load(1, "b"))
        .then(parks("a"))
        .states(a=Status.UNLOADING)
    )


def parked_house(rules: Rules = PARKING, limit_bytes: int = 2 * GIB) -> Playbook:
    """Model a is parked, b is resident."""
    play = parking(rules, limit_bytes).when(parked("a")).then(start("b"))
    return play.when(ready("b")).then(remember("b"), resident(1, "b")).states(a=Status.PARKED, b=Status.READY)


def test_a_model_that_has_to_go_is_parked_and_the_answer_says_so() -> None:
    play = parking().when(parked("a")).then(start("b")).timers(sets(Clock.IDLE, at=1060.0))
    play.notices(notice("model.moved", "a"), notice("model.moved", "b"), notice("switch.phase", "b"))
    assert play.state.switch is not None
    (released,) = play.state.switch.released
    assert (released.held_bytes, released.freed_bytes, released.parked) == (HELD, HELD - STILL, True)
    assert (play.state.models["a"].held_bytes, play.state.models["a"].planned_bytes) == (STILL, 0)
    play.when(ready("b")).then(remember("b"), resident(1, "b", released=(released,)))


def test_a_parked_model_resumes_in_the_same_process() -> None:
    play = parked_house()
    worker = play.state.models["a"].worker
    play.when(infer(2, "a")).then(parks("b")).when(parked("b")).then(resume("a")).timers(sets(Clock.IDLE, at=1060.0))
    play.when(ready("a")).then(remember("a"), grant(2, "a")).states(a=Status.READY, b=Status.PARKED)
    assert play.state.models["a"].worker == worker


def test_a_parked_model_resumes_with_the_context_that_is_asked_for() -> None:
    play = parked_house().when(load(2, "a", ctx=2048)).then(parks("b")).when(parked("b")).then(resume("a", ctx=2048))
    play.when(ready("a")).then(remember("a"), resident(2, "a", ctx=2048, changed=True))


def test_nothing_is_parked_where_the_rules_have_no_time_for_it() -> None:
    Playbook("a", "b", rules=Rules(park_s=0.0)).given_ready("a").when(load(1, "b")).then(stop("a"))


def test_nothing_is_parked_where_there_is_no_room_for_it() -> None:
    shape = replace(SHAPE, repacked_bytes=900 * MIB)
    play = Playbook("b", rules=PARKING, limit_bytes=plan_bytes(shape=shape))
    play.when(registered("a", shape=shape)).then().given_ready("a").when(load(1, "b")).then(stop("a"))


def test_a_model_that_reloads_itself_or_that_somebody_wants_cold_is_not_parked() -> None:
    Playbook("a", rules=PARKING).given_ready("a").when(load(1, "a", ctx=8192)).then(stop("a"))
    Playbook("a", rules=PARKING).given_ready("a").when(unload(1, "a")).then(stop("a"))
    (
        Playbook("a", "b", rules=PARKING)
        .given_ready("a")
        .when(infer(1, "a"))
        .then(grant(1, "a"))
        .when(load(2, "b"))
        .then()
        .when(unload(3, "a"))
        .then()
        .when(answered(1))
        .then(complete(1), stop("a"))
        .when(gone("a"))
        .then(remember(None), cold(3, "a"), start("b"))
    )


def test_a_parked_model_goes_after_its_time() -> None:
    play = parked_house().when(fires(Clock.IDLE)).then(stop("a")).states(a=Status.UNLOADING)
    play.when(gone("a")).then().states(a=Status.COLD)
    play.when(infer(2, "a")).then(parks("b")).when(parked("b")).then(start("a"))


def test_a_parked_model_whose_memory_is_wanted_goes() -> None:
    play = parked_house(limit_bytes=plan_bytes() + STILL)
    play.when(load(2, "b", ctx=8192)).then(stop("b"), stop("a"))
    play = parked_house(Rules(exclusive=False, park_s=60.0), plan_bytes() + 192 * MIB)
    play.when(pin(2, "b")).then(pinned_told(2, "b")).when(
        registered("d", shape=replace(SHAPE, tensor_bytes=MIB))
    ).then()
    play.when(load(3, "d")).then(stop("a")).when(gone("a")).then(start("d"))


def test_a_process_that_holds_more_than_expected_goes_before_the_load() -> None:
    play = parking().when(parked("a", held=GIB)).then(stop("a")).states(a=Status.UNLOADING, b=Status.COLD)
    play.when(gone("a")).then(start("b"))


def test_an_unload_of_a_parked_model_ends_its_process() -> None:
    parked_house().when(unload(2, "a")).then(stop("a")).when(gone("a")).then(cold(2, "a")).states(a=Status.COLD)


def test_an_unload_of_a_model_that_is_being_parked_ends_its_process_after() -> None:
    play = parking().when(unload(2, "a")).then().when(parked("a")).then(start("b"), stop("a"))
    play.when(gone("a")).then(remember(None), cold(2, "a")).when(ready("b")).then(remember("b"), resident(1, "b"))


def test_a_parked_model_cannot_be_removed_from_the_list() -> None:
    parked_house().when(forget(2, "a")).then(refuse(2, "in_use", message="cannot remove a: it is parked"))


def test_a_crash_while_parked_costs_nothing() -> None:
    play = parked_house().when(dies("a")).then().timers(clears(Clock.IDLE)).states(a=Status.COLD, b=Status.READY)
    assert (play.state.models["a"].failures, play.state.models["a"].held_bytes) == ((), 0)
    play.when(infer(2, "a")).then(parks("b")).when(parked("b")).then(start("a"))


def test_a_crash_while_it_is_being_parked_is_an_unload() -> None:
    play = parking().when(dies("a")).then(start("b")).states(a=Status.COLD)
    assert play.state.models["a"].failures == ()


def test_a_resume_that_fails_rolls_back_to_the_parked_other() -> None:
    (
        parked_house()
        .when(load(2, "a"))
        .then(parks("b"))
        .when(parked("b"))
        .then(resume("a"))
        .when(dies("a", LOAD_FAILED))
        .then(resume("b"))
        .states(a=Status.FAILED)
        .when(ready("b"))
        .then(refuse(2, "load_failed", because=("rolled back: b is resident again",)))
        .states(b=Status.READY)
    )


def test_a_resume_that_nobody_waits_for_any_more_ends_the_process() -> None:
    play = parked_house().when(load(2, "a")).then(parks("b")).when(parked("b")).then(resume("a"))
    play.when(unload(3, "a")).then(refuse(2, "load_cancelled"), stop("a", at_once=True))
    play.when(gone("a")).then(cold(3, "a"))


def test_no_rollback_to_a_process_that_is_on_its_way_out() -> None:
    play = parking().when(parked("a")).then(start("b")).when(fires(Clock.IDLE)).then(stop("a"))
    play.when(dies("b", LOAD_FAILED)).then(refuse(1, "load_failed")).when(gone("a")).then()
    play.when(infer(2)).then(start("a"))


def test_a_target_whose_process_goes_while_its_switch_waits_is_loaded_from_cold() -> None:
    """The parked target is dropped under pressure while the other model still works."""
    play = parked_house().when(infer(2, "b")).then(grant(2, "b")).when(load(3, "a")).then()
    play.when(read(0.85)).then(trims(), stop("a"))
    play.when(answered(2)).then(complete(2), stop("b"))
    play.when(gone("b")).then()
    assert play.state.switch is not None
    play.when(gone("a")).then(start("a")).when(ready("a")).then(remember("a"), resident(3, "a"))


def test_whoever_waits_for_a_parked_model_stops_its_clock() -> None:
    play = parked_house().when(infer(2, "b")).then(grant(2, "b"))
    play.when(infer(3, "a", client=3)).then().timers(sets(Clock.PATIENCE, at=1002.0), clears(Clock.IDLE))


def test_what_is_parked_is_not_remembered_as_resident() -> None:
    assert parked_house().state.remembered == Memory("b", kept("b"))


def test_a_pin_keeps_no_parked_process() -> None:
    play = parked_house().when(pin(2, "a")).then(pinned_told(2, "a")).timers(clears(Clock.IDLE))
    play.when(load(3, "c")).then(parks("b")).when(read(0.85)).then(trims()).when(parked("b")).then(start("c"))
    play.when(read(0.85)).then(stop("a"), stop("b"))


def test_a_stop_ends_parked_processes() -> None:
    parked_house().when(stop_asked()).then(stop("a"), stop("b"))
    parking().when(stop_asked()).then(refuse(1, "shutting_down")).when(parked("a")).then(stop("a"))
