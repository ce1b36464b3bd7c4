"""What is done at each level of memory pressure: the least that helps, one step a reading, running answers last."""

import pytest

from h2qd.core import budget
from h2qd.core.effects import Clock, Publish
from h2qd.core.guard import Level
from h2qd.core.records import Rules
from h2qd.core.states import Status
from tests.playbook import (
    GIB,
    HELD,
    Playbook,
    answered,
    cancel,
    complete,
    dies,
    fires,
    gone,
    grant,
    halt,
    infer,
    limit,
    load,
    measured,
    notice,
    parked,
    parks,
    pin,
    pinned_told,
    plan_bytes,
    read,
    ready,
    refuse,
    remember,
    resident,
    start,
    stop,
    stop_asked,
    trims,
    unload,
)

BUDGET = Rules(exclusive=False, slots=2)
PARKING = Rules(exclusive=False, park_s=600.0)
PLANNED = plan_bytes(slots=2)
WARN, CRITICAL, EMERGENCY, FINE = 0.82, 0.92, 0.97, 0.5


def house(*models: str, rules: Rules = BUDGET) -> Playbook:
    """Models that are resident and idle, the first for longest."""
    play = Playbook(*models, rules=rules, limit_bytes=16 * GIB)
    for model in models:
        play.given_ready(model).later(10.0)
    return play


def with_parked() -> Playbook:
    """Model a is parked; b and c are resident and idle."""
    return (
        Playbook("a", "b", "c", rules=PARKING, limit_bytes=2 * plan_bytes() + GIB // 4)
        .given_ready("a")
        .given_ready("b")
        .when(load(1, "c"))
        .then(parks("a"))
        .when(parked("a"))
        .then(start("c"))
        .when(ready("c"))
        .then(remember("c"), resident(1, "c"))
        .states(a=Status.PARKED, b=Status.READY, c=Status.READY)
    )


def eased(play: Playbook) -> Playbook:
    """Readings say for long enough that all is fine."""
    play.when(read(FINE)).then()
    return play.later(5.0).when(read(FINE)).then()


# --- levels are told --------------------------------------------------------------------------------------


def test_a_change_of_level_is_told_with_its_figures() -> None:
    play = house("a").when(read(FINE)).then().notices()
    play.when(read(WARN, available=3 * GIB)).then(trims())
    (told,) = (effect for effect in play._effects if isinstance(effect, Publish))
    assert (told.topic, told.event) == ("memory", "memory.level")
    assert told.data == {"was": "normal", "now": "warn", "used_share": WARN, "available_bytes": 3 * GIB}
    play.notices(notice("memory.level")).when(read(WARN)).then().notices()


def test_caches_are_trimmed_when_it_gets_worse_and_not_when_it_eases() -> None:
    play = Playbook().when(read(WARN)).then(trims()).when(read(CRITICAL)).then(trims())
    play.when(read(EMERGENCY)).then(trims())
    eased(play).notices(notice("memory.level"))
    assert play.state.guard.level is Level.NORMAL


def test_a_stall_counts_as_one_level_more() -> None:
    play = house("a").when(read(WARN, stalled=True)).then(trims(), stop("a"))
    assert play.state.guard.level is Level.CRITICAL


# --- WARN ---------------------------------------------------------------------------------------------------


def test_at_warn_parked_models_go_and_resident_ones_stay() -> None:
    play = with_parked().when(read(WARN)).then(trims(), stop("a"))
    play.notices(notice("memory.level"), notice("memory.relieved", "a"), notice("model.moved", "a"))
    play.when(gone("a")).then().when(read(WARN)).then().states(a=Status.COLD, b=Status.READY, c=Status.READY)


def test_at_warn_loads_go_on() -> None:
    Playbook("a").when(read(WARN)).then(trims()).when(load(1, "a")).then(start("a"))


# --- CRITICAL -----------------------------------------------------------------------------------------------


def test_at_critical_parked_models_go_first_then_the_idle_one_that_is_cheapest_to_lose() -> None:
    (
        with_parked()
        .later(1.0)
        .when(infer(2, "b"))
        .then(grant(2, "b"))
        .when(read(CRITICAL))
        .then(trims(), stop("a"))
        .when(gone("a"))
        .then()
        .when(read(CRITICAL))
        .then(stop("c"))
        .when(gone("c"))
        .then()
        .when(read(CRITICAL))
        .then()
        .states(b=Status.READY)
        .when(answered(2))
        .then(complete(2))
        .when(read(CRITICAL))
        .then(stop("b"))
    )


def test_nothing_more_is_done_while_memory_is_on_its_way_back() -> None:
    play = house("a", "b", "c").when(read(CRITICAL)).then(trims(), stop("a"))
    for _ in range(5):
        play.when(read(CRITICAL)).then()
    play.when(read(EMERGENCY)).then(trims()).when(gone("a")).then().when(read(EMERGENCY)).then(stop("b"))


def test_an_eviction_that_helped_is_the_last_for_a_while() -> None:
    play = house("a", "b").when(read(CRITICAL)).then(trims(), stop("a")).when(gone("a")).then()
    eased(play.later(1.0)).later(1.0)
    play.when(read(CRITICAL)).then(trims()).states(b=Status.READY)
    play.later(4.9).when(read(CRITICAL)).then()
    play.later(0.1).when(read(CRITICAL)).then(stop("b"))


def test_pinned_models_stay_at_critical() -> None:
    play = house("a").when(pin(1, "a")).then(pinned_told(1, "a"))
    play.when(read(CRITICAL)).then(trims()).states(a=Status.READY)


@pytest.mark.parametrize("share", [CRITICAL, EMERGENCY])
def test_no_load_begins_and_who_asks_is_told_when_to_come_back(share: float) -> None:
    play = Playbook("a").when(read(share)).then(trims())
    play.when(load(1, "a")).then(
        refuse(
            1,
            "memory_pressure",
            message="cannot load a: the device is short of memory",
            because=(f"level {play.state.guard.level.name.lower()}: {share:.0%} of its memory is in use",),
            retry_after_s=play.state.rules.guard.dwell_s,
        )
    )
    play.when(infer(2, "a")).then(refuse(2, "memory_pressure"))
    eased(play).when(infer(3, "a")).then(start("a"))


def test_a_resident_model_goes_on_serving() -> None:
    (
        house("a")
        .when(infer(1, "a"))
        .then(grant(1, "a"))
        .when(read(0.95))
        .then(trims())
        .when(infer(2, "a"))
        .then(grant(2, "a"))
        .when(load(3, "a"))
        .then(resident(3, "a", changed=False))
        .when(answered(1))
        .then(complete(1))
    )


def test_a_switch_that_still_waits_for_its_victims_is_given_up_and_they_stay() -> None:
    play = (
        Playbook("a", "b")
        .given_ready("a")
        .when(infer(1, "a"))
        .then(grant(1, "a"))
        .when(load(2, "b"))
        .then()
        .when(infer(3, "a"))
        .then()
        .when(fires(Clock.PATIENCE))
        .then()
        .states(a=Status.DRAINING)
        .when(read(CRITICAL))
        .then(trims(), refuse(2, "memory_pressure"))
        .states(a=Status.READY)
    )
    assert play.state.switch is None
    play.when(answered(1)).then(complete(1), grant(3, "a"))


def test_a_load_whose_victims_are_gone_does_not_begin_under_pressure() -> None:
    (
        Playbook("a", "b")
        .given_ready("a")
        .when(load(1, "b"))
        .then(stop("a"))
        .when(read(CRITICAL))
        .then(trims())
        .when(gone("a"))
        .then(refuse(1, "memory_pressure"))
        .states(a=Status.COLD, b=Status.COLD)
    )


def test_a_load_under_way_is_left_alone_at_critical() -> None:
    (
        Playbook("a")
        .when(load(1, "a"))
        .then(start("a"))
        .when(read(CRITICAL))
        .then(trims())
        .when(ready("a"))
        .then(remember("a"), resident(1, "a"))
    )


def test_under_pressure_no_rollback_begins() -> None:
    (
        Playbook("a", "b")
        .given_ready("a")
        .when(load(1, "b"))
        .then(stop("a"))
        .when(gone("a"))
        .then(start("b"))
        .when(read(CRITICAL))
        .then(trims())
        .when(dies("b"))
        .then(refuse(1, "worker_crashed"))
        .states(a=Status.COLD, b=Status.FAILED)
    )


# --- EMERGENCY ----------------------------------------------------------------------------------------------


def test_at_emergency_each_reading_takes_the_next_step() -> None:
    """Parked, the load, idle, pinned, over its plan, and then the request of the lowest priority."""
    play = with_parked()
    play.when(pin(2, "c")).then(pinned_told(2, "c"))
    play.when(infer(3, "b")).then(grant(3, "b"))
    play.when(measured("b", 2 * GIB)).then()
    play.when(read(EMERGENCY)).then(trims(), stop("a")).when(gone("a")).then()
    play.when(read(EMERGENCY)).then(stop("c")).when(gone("c")).then()
    play.when(read(EMERGENCY)).then(refuse(3, "memory_pressure", retry_after_s=10.0), stop("b", at_once=True))
    play.when(gone("b")).then().when(read(EMERGENCY)).then()
    play.states(a=Status.COLD, b=Status.COLD, c=Status.COLD)


def test_a_load_under_way_is_given_up_before_an_idle_model_goes() -> None:
    play = (
        Playbook("a", "b", rules=BUDGET, limit_bytes=16 * GIB)
        .given_ready("a")
        .when(load(1, "b"))
        .then(start("b"))
        .when(infer(2, "b"))
        .then()
        .when(read(EMERGENCY))
        .then(
            trims(),
            refuse(1, "memory_pressure", message="cannot load b: the device runs out of memory", retry_after_s=10.0),
            refuse(2, "memory_pressure"),
            stop("b", at_once=True),
        )
        .notices(
            notice("memory.level"),
            notice("memory.relieved", "b"),
            notice("model.moved", "b"),
        )
        .states(a=Status.READY)
    )
    assert play.state.switch is None


def test_a_rollback_is_given_up_too_and_all_hear_of_it() -> None:
    (
        Playbook("a", "b")
        .given_ready("a")
        .when(load(1, "b"))
        .then(stop("a"))
        .when(gone("a"))
        .then(start("b"))
        .when(dies("b"))
        .then(start("a"))
        .when(infer(2, "a"))
        .then()
        .when(read(EMERGENCY))
        .then(trims(), refuse(2, "memory_pressure"), refuse(1, "worker_crashed"), stop("a", at_once=True))
    )


def test_idle_models_go_before_pinned_ones_and_without_a_pause() -> None:
    play = house("a", "b", "c").when(pin(1, "a")).then(pinned_told(1, "a"))
    for name in ("b", "c", "a"):
        play.when(read(EMERGENCY))
        play.then(*([trims()] if name == "b" else []), stop(name)).when(gone(name)).then()
    play.when(read(EMERGENCY)).then()
    assert play.state.models["a"].pinned


def test_the_worker_that_is_most_over_its_plan_is_ended_with_all_its_work() -> None:
    play = house("a", "b", "c")
    for number, name in enumerate(("a", "b", "c")):
        play.when(infer(1 + number, name, client=number)).then(grant(1 + number, name))
    within = int(PLANNED * 1.04)
    play.when(measured("a", within)).then()
    play.when(measured("b", within + GIB)).then()
    play.when(measured("c", within + GIB // 2)).then()
    play.when(infer(5, "b", client=5)).then(grant(5, "b")).when(infer(6, "b", client=6)).then()
    over = within + GIB - PLANNED
    play.when(read(EMERGENCY)).then(
        trims(),
        refuse(
            2,
            "memory_pressure",
            message=f"cannot go on: b held {over} bytes more than its plan: the device runs out of memory",
        ),
        refuse(5, "memory_pressure"),
        stop("b", at_once=True),
        refuse(6, "memory_pressure", retry_after_s=5.0),
    )
    play.when(gone("b")).then().states(a=Status.READY, c=Status.READY)
    play.when(read(EMERGENCY)).then(refuse(3, "memory_pressure"), stop("c", at_once=True)).when(gone("c")).then()
    play.when(read(EMERGENCY)).then(halt(1, "a")).states(a=Status.READY)


def test_of_running_requests_the_lowest_priority_is_cut_off_then_who_began_last() -> None:
    play = house("a", "b")
    play.when(infer(1, "a", client=1, priority=2)).then(grant(1, "a"))
    play.when(infer(2, "b", client=2)).then(grant(2, "b")).later(1.0)
    play.when(infer(3, "b", client=3)).then(grant(3, "b"))
    play.when(read(EMERGENCY)).then(trims(), halt(3, "b")).notices(
        notice("memory.level"), notice("memory.relieved", "b")
    )
    play.when(read(EMERGENCY)).then()
    play.when(answered(3)).then(refuse(3, "memory_pressure", message="cannot go on: the device runs out of memory"))
    play.when(read(EMERGENCY)).then(halt(2, "b")).when(answered(2)).then(refuse(2, "memory_pressure"))
    play.when(read(EMERGENCY)).then(stop("b")).when(gone("b")).then()
    play.when(read(EMERGENCY)).then(halt(1, "a"))


def test_a_request_that_its_client_has_ended_is_awaited_first() -> None:
    play = house("a").when(infer(1, "a")).then(grant(1, "a")).when(infer(2, "a", client=2)).then(grant(2, "a"))
    play.when(cancel(1)).then(halt(1, "a")).when(read(EMERGENCY)).then(trims())
    play.when(answered(1)).then(refuse(1, "cancelled")).when(read(EMERGENCY)).then(halt(2, "a"))


def cut_with_line() -> Playbook:
    """The only running request was cut off, and another waits for the model."""
    play = house("a").when(infer(1, "a")).then(grant(1, "a")).when(read(EMERGENCY)).then(trims(), halt(1, "a"))
    play.when(infer(2, "a", client=2)).then().when(answered(1)).then(refuse(1, "memory_pressure"))
    return play.states(a=Status.READY)


def test_at_emergency_no_work_begins_in_the_place_of_what_was_cut_off() -> None:
    play = cut_with_line().when(read(FINE)).then().later(5.0).when(read(FINE)).then(grant(2, "a"))
    play.when(answered(2)).then(complete(2))


def test_a_line_does_not_keep_a_model_whose_work_was_cut_off() -> None:
    cut_with_line().when(read(EMERGENCY)).then(stop("a"), refuse(2, "memory_pressure")).when(gone("a")).then()


def test_running_answers_are_kept_below_emergency() -> None:
    play = house("a", "b")
    play.when(infer(1, "a")).then(grant(1, "a")).when(infer(2, "b")).then(grant(2, "b"))
    play.when(measured("a", 8 * GIB)).then().when(read(CRITICAL)).then(trims())
    for _ in range(30):
        play.later(1.0).when(read(0.95)).then()
    play.when(answered(1)).then(complete(1)).when(answered(2)).then(complete(2))


def test_when_pressure_ends_all_is_as_before() -> None:
    play = house("a").when(read(EMERGENCY)).then(trims(), stop("a"))
    play.when(infer(1, "a")).then(refuse(1, "memory_pressure")).when(gone("a")).then()
    eased(play).when(infer(2, "a")).then(start("a")).when(ready("a")).then(grant(2, "a"))


# --- a budget overdrawn -------------------------------------------------------------------------------------


def test_idle_models_go_while_models_hold_more_than_their_budget() -> None:
    play = house("a", "b", "c").when(limit(2 * PLANNED)).then()
    play.when(read(FINE)).then(stop("a")).notices(notice("memory.relieved", "a"), notice("model.moved", "a"))
    play.when(read(FINE)).then().when(gone("a")).then().when(read(FINE)).then()
    assert budget.free(play.state) == 0


def test_a_model_that_grew_over_the_budget_goes_once_it_is_idle() -> None:
    play = Playbook("a").given_ready("a").when(infer(1, "a")).then(grant(1, "a")).when(measured("a", 3 * GIB)).then()
    play.when(read(FINE)).then().when(answered(1)).then(complete(1)).when(read(FINE)).then(stop("a"))


def test_a_debt_is_worked_off_at_warn() -> None:
    house("a", "b").when(limit(PLANNED)).then().when(read(WARN)).then(trims(), stop("a"))


def test_a_debt_is_worked_off_at_critical_though_evictions_pause() -> None:
    """Pressure was relieved by an eviction and is just back: no eviction for its sake yet, but the debt is one."""
    play = house("a", "b", "c").when(read(CRITICAL)).then(trims(), stop("a")).when(gone("a")).then()
    eased(play.later(1.0)).later(1.0)
    play.when(read(CRITICAL)).then(trims()).when(limit(PLANNED)).then()
    play.when(read(CRITICAL)).then(stop("b")).notices(notice("memory.relieved", "b"), notice("model.moved", "b"))


def test_a_debt_waits_for_the_switch_under_way() -> None:
    play = house("a", "b").when(load(1, "b", ctx=8192)).then(stop("b")).when(gone("b")).then(start("b", ctx=8192))
    play.when(limit(plan_bytes(8192, slots=2))).then().when(read(FINE)).then()
    play.when(ready("b")).then(resident(1, "b")).when(read(FINE)).then(stop("a"))


# --- the end ------------------------------------------------------------------------------------------------


def test_a_stop_is_not_disturbed_but_levels_are_still_told() -> None:
    play = house("a").when(infer(1, "a")).then(grant(1, "a")).when(stop_asked()).then()
    play.when(read(EMERGENCY)).then(trims()).notices(notice("memory.level")).when(read(EMERGENCY)).then().notices()
    assert play.state.available_bytes == 16 * GIB
    assert play.state.models["a"].held_bytes == HELD


def test_an_unload_under_way_is_awaited() -> None:
    play = house("a", "b").when(unload(1, "a")).then(stop("a")).when(read(CRITICAL)).then(trims())
    play.states(b=Status.READY)
