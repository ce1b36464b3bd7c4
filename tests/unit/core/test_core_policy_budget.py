"""The budget policy: as many residents as fit; who goes for another, who is rescued, and what a load is given."""

from dataclasses import replace

import pytest

from h2qd.core.effects import Clock
from h2qd.core.records import Memory, Phase, Rules, Traits
from h2qd.core.states import Status
from tests.playbook import (
    GIB,
    LOAD_FAILED,
    SHAPE,
    Playbook,
    answered,
    cancel,
    clears,
    cold,
    complete,
    dies,
    fires,
    gone,
    grant,
    halt,
    infer,
    kept,
    limit,
    load,
    measured,
    pin,
    pinned_told,
    plan_bytes,
    read,
    ready,
    refuse,
    registered,
    remember,
    resident,
    sets,
    start,
    stop,
    trims,
    unload,
)

BUDGET = Rules(exclusive=False)
ONE = plan_bytes()
LESS = Traits(min_ctx=1024)


def house(*models: str, room_for: int = 2, cold: tuple[str, ...] = ("c",), rules: Rules = BUDGET) -> Playbook:
    """Models that became resident one after the other, under a budget for so many; the last is active."""
    play = Playbook(*models, *cold, rules=rules, limit_bytes=room_for * ONE)
    for model in models:
        play.given_ready(model).later(10.0)
    return play


# --- residents ----------------------------------------------------------------------------------------------


def test_models_stay_as_long_as_they_fit() -> None:
    play = house("a", "b", room_for=3)
    play.when(load(1, "c")).then(start("c")).states(a=Status.READY, b=Status.READY)
    play.when(ready("c")).then(remember("c"), resident(1, "c", was_active="b", released=()))
    assert play.state.remembered == Memory("c", kept("a", "b", "c"))


def test_a_gentle_load_takes_free_memory_and_nobodys_place() -> None:
    message = "cannot load c: it does not fit beside what is resident"
    play = house("a", "b").when(load(1, "c", gentle=True)).then(refuse(1, "no_fit", message=message))
    play.states(a=Status.READY, b=Status.READY, c=Status.COLD)
    house("a", room_for=2).when(load(1, "c", gentle=True)).then(start("c")).states(a=Status.READY)


def test_whoever_is_idle_goes_where_the_device_has_less_than_the_budget_promises() -> None:
    """The budget holds both, and with the pages of its file not counted the load fits the device."""
    play = house("a", room_for=3).when(measured("a", GIB // 16)).then().when(read(0.7, available=GIB // 4)).then()
    play.when(load(1, "c")).then(stop("a")).when(gone("a")).then(start("c"))


def test_the_one_that_was_idle_for_longest_goes() -> None:
    play = house("a", "b").when(infer(1, "a")).then(grant(1, "a")).later(30.0).when(answered(1)).then(complete(1))
    play.later(5.0).when(load(2, "c")).then(stop("b")).when(gone("b")).then(start("c"))
    play.when(ready("c")).then(remember("c"), resident(2, "c")).states(a=Status.READY, b=Status.COLD)


def test_the_lower_priority_goes_though_it_worked_last() -> None:
    play = Playbook("a", "c", rules=BUDGET, limit_bytes=2 * ONE)
    play.when(registered("low", traits=Traits(degrade=False, priority=-1))).then().given_ready("a").later(100.0)
    play.given_ready("low").when(load(1, "c")).then(stop("low"))


def test_a_large_model_takes_the_place_of_several() -> None:
    play = house("a", "b", "d", room_for=3)
    play.when(registered("large", shape=replace(SHAPE, tensor_bytes=2 * GIB))).then()
    play.when(load(1, "large")).then(stop("a"), stop("b")).when(gone("b")).then().when(gone("a")).then(start("large"))
    play.when(ready("large")).then(remember("large"), resident(1, "large"))
    play.states(a=Status.COLD, b=Status.COLD, d=Status.READY)


def test_an_inference_loads_its_model_and_does_not_make_it_the_active_one() -> None:
    play = house("a").when(infer(1, "c")).then(start("c")).when(ready("c")).then(grant(1, "c"))
    play.when(answered(1)).then(complete(1)).when(infer(2)).then(grant(2, "a"))


def test_the_first_model_is_active_however_it_came() -> None:
    Playbook("a", rules=BUDGET).when(infer(1, "a")).then(start("a")).when(ready("a")).then(
        remember("a"), grant(1, "a")
    )


def test_a_load_without_a_switch_leaves_the_active_model_as_it_is() -> None:
    play = house("a").when(load(1, "c", activate=False)).then(start("c")).when(load(2, "c", activate=False)).then()
    play.when(ready("c")).then(resident(1, "c", was_active="a"), resident(2, "c", was_active="a"))
    play.when(load(3, "c", activate=False)).then(resident(3, "c", changed=False)).when(infer(4)).then(grant(4, "a"))
    play.when(load(5, "c")).then(remember("c"), resident(5, "c", changed=False, was_active="a"))


def test_one_switch_among_several_loads_activates() -> None:
    play = house("a").when(load(1, "c", activate=False)).then(start("c")).when(load(2, "c")).then()
    play.when(ready("c")).then(remember("c"), resident(1, "c"), resident(2, "c"))


# --- busy victims -------------------------------------------------------------------------------------------


def test_an_idle_model_goes_at_once_and_a_busy_one_serves_on() -> None:
    play = house("a", "b").when(infer(1, "a")).then(grant(1, "a")).when(load(2, "c")).then(stop("b")).timers()
    play.when(gone("b")).then(start("c")).when(ready("c")).then(remember("c"), resident(2, "c"))
    play.when(answered(1)).then(complete(1))


def all_busy() -> Playbook:
    """Models a and b are at work, and c is wanted; whoever pauses first goes."""
    play = house("a", "b").when(infer(1, "a", client=1)).then(grant(1, "a"))
    play.when(infer(2, "b", client=2)).then(grant(2, "b")).when(load(3, "c")).then()
    return play.timers(sets(Clock.PATIENCE, at=play.now + 2.0))


def test_the_first_to_pause_goes() -> None:
    for pausing, other, request in (("a", "b", 1), ("b", "a", 2)):
        play = all_busy().when(answered(request)).then(complete(request), stop(pausing))
        play.timers(clears(Clock.PATIENCE)).states(**{other: Status.READY})
        play.when(gone(pausing)).then(start("c"))


def test_after_patience_one_of_them_is_drained_and_never_cut_off() -> None:
    play = all_busy().when(fires(Clock.PATIENCE)).then().states(a=Status.DRAINING, b=Status.READY)
    play.when(infer(4, "a", client=4)).then().when(answered(2)).then(complete(2)).states(b=Status.READY)
    play.when(answered(1)).then(complete(1), stop("a")).when(gone("a")).then(start("c"))
    play.when(ready("c")).then(remember("c"), resident(3, "c"), stop("b")).when(gone("b")).then(start("a"))


def test_force_cuts_off_only_what_has_to_go() -> None:
    play = all_busy().when(load(4, "c", force=True)).then(halt(1, "a"), refuse(1, "unloaded"), stop("a"))
    play.states(b=Status.READY).when(answered(2)).then(complete(2))


def test_a_victim_that_is_wanted_while_it_could_still_stay_is_rescued() -> None:
    """Patience looks again: model a was chosen; it stays busy, and b pauses."""
    play = all_busy()
    assert play.state.switch is not None
    assert play.state.switch.victims == ("a",)
    play.when(infer(4, "a", client=4)).then().when(answered(1)).then(complete(1), grant(4, "a"))
    play.when(answered(2)).then(complete(2), stop("b")).states(a=Status.READY)


def test_room_that_comes_while_the_switch_is_patient_is_used() -> None:
    all_busy().when(dies("b")).then(refuse(2, "worker_crashed"), start("c")).states(a=Status.READY)
    all_busy().when(limit(3 * ONE)).then(start("c")).states(a=Status.READY, b=Status.READY)


def test_a_budget_that_falls_while_the_switch_is_patient_gives_it_up() -> None:
    play = all_busy().when(limit(ONE - 1)).then(refuse(3, "no_fit")).timers(clears(Clock.PATIENCE))
    assert play.state.switch is None


def test_a_switch_that_nobody_waits_for_lets_them_serve_on() -> None:
    play = all_busy().when(fires(Clock.PATIENCE)).then().when(infer(4, "a", client=4)).then()
    play.when(cancel(3)).then(refuse(3, "cancelled")).states(a=Status.READY, b=Status.READY)


def test_a_model_that_grows_while_another_unloads_has_to_be_made_room_for_again() -> None:
    """The memory of a is back, and b took more meanwhile: b goes too, after patience with its work."""
    play = house("a", "b").when(infer(1, "b")).then(grant(1, "b")).when(load(2, "c")).then(stop("a"))
    play.when(measured("b", int(1.5 * ONE))).then().when(gone("a")).then()
    play.timers(sets(Clock.PATIENCE, at=play.now + 2.0))
    assert play.state.switch is not None
    assert (play.state.switch.phase, [r.model for r in play.state.switch.released]) == (Phase.PATIENCE, ["a"])
    play.when(answered(1)).then(complete(1), stop("b")).when(gone("b")).then(start("c"))
    released = play.state.switch.released
    play.when(ready("c")).then(remember("c"), resident(2, "c", released=released))
    assert [gone_one.model for gone_one in released] == ["a", "b"]


def test_an_idle_model_that_grows_while_another_unloads_goes_at_once() -> None:
    play = house("a", "b").when(load(2, "c")).then(stop("a")).when(measured("b", int(1.5 * ONE))).then()
    play.when(gone("a")).then(stop("b")).timers().when(gone("b")).then(start("c"))


def test_memory_on_its_way_back_is_waited_for_before_anybody_goes() -> None:
    play = house("a", "b").when(unload(1, "b")).then(stop("b")).when(load(2, "c")).then()
    play.when(gone("b")).then(remember(None), cold(1, "b"), start("c")).states(a=Status.READY)


# --- failures -----------------------------------------------------------------------------------------------


def test_a_load_that_fails_brings_the_active_model_back() -> None:
    play = house("a", "b").when(infer(1, "a")).then(grant(1, "a")).when(load(2, "c")).then(stop("b"))
    play.when(gone("b")).then(start("c")).when(dies("c", LOAD_FAILED)).then(start("b"))
    play.when(ready("b")).then(refuse(2, "load_failed", because=("rolled back: b is resident again",)))
    play.states(a=Status.READY, b=Status.READY, c=Status.FAILED)


def test_a_load_that_fails_brings_nobody_back_who_was_not_active() -> None:
    play = house("a", "b").when(infer(1, "b")).then(grant(1, "b")).when(load(2, "c")).then(stop("a"))
    play.when(gone("a")).then(start("c")).when(dies("c", LOAD_FAILED)).then(refuse(2, "load_failed"))
    play.states(a=Status.COLD, b=Status.READY)


def test_a_model_that_does_not_fit_any_more_is_not_brought_back() -> None:
    play = house("b").when(load(1, "b", ctx=8192)).then(stop("b")).when(gone("b")).then(start("b", ctx=8192))
    play.when(limit(ONE - 1)).then().when(dies("b", LOAD_FAILED)).then(refuse(1, "load_failed")).states(
        b=Status.FAILED
    )


# --- pins ---------------------------------------------------------------------------------------------------


def test_what_does_not_fit_beside_a_pinned_model_is_refused_with_the_fix() -> None:
    play = house("a", room_for=1).when(pin(1, "a")).then(pinned_told(1, "a"))
    play.when(load(2, "c")).then(refuse(2, "no_fit", fix="h2qctl unpin a", retry_after_s=None))
    play.when(pin(3, "a", pinned=False)).then(pinned_told(3, "a", pinned=False)).when(load(4, "c")).then(stop("a"))


def test_what_fits_beside_a_pinned_model_takes_the_place_of_others() -> None:
    house("a", "b").when(pin(1, "a")).then(pinned_told(1, "a")).when(load(2, "c")).then(stop("b"))


# --- less than asked for ------------------------------------------------------------------------------------


def test_a_load_is_given_less_where_that_fits_and_the_answer_says_what() -> None:
    given = plan_bytes(2048, "q8_0")
    play = Playbook(rules=BUDGET, limit_bytes=given).when(registered("a", traits=LESS)).then()
    less = ("context 2048 instead of 4096", "KV cache q8_0 instead of f16")
    play.when(load(1, "a")).then(start("a", ctx=2048))
    assert play.state.models["a"].planned_bytes == given
    play.when(ready("a")).then(remember("a"), resident(1, "a", ctx=2048, kv_type="q8_0", less=less))
    assert play.state.models["a"].story[0].detail == ", ".join(less)
    play.when(load(2, "a")).then(resident(2, "a", changed=False, less=less))
    play.when(load(3, "a", ctx=4096)).then(resident(3, "a", changed=False, less=less))
    play.when(load(4, "a", ctx=2048, kv_type="q8_0", exact=True)).then(resident(4, "a", changed=False))
    play.when(infer(5, "a", ctx=4096)).then(grant(5, "a"))


@pytest.mark.parametrize("asked", [{}, {"ctx": 4096}, {"kv_type": "f16"}, {"ctx": 2048}])
def test_who_is_exact_is_not_served_by_less(asked: dict[str, int]) -> None:
    play = Playbook(rules=BUDGET, limit_bytes=plan_bytes(2048, "q8_0")).when(registered("a", traits=LESS)).then()
    play.when(load(1, "a")).then(start("a", ctx=2048)).when(ready("a")).then(remember("a"), resident(1, "a"))
    play.when(load(2, "a", exact=True, **asked)).then(refuse(2, "no_fit"))  # type: ignore[arg-type]
    play.when(limit(ONE)).then().when(load(3, "a", exact=True, **asked)).then(stop("a"))  # type: ignore[arg-type]
    play.when(gone("a")).then(start("a", ctx=asked.get("ctx", 4096)))


def test_another_kv_cache_is_a_reload() -> None:
    play = house("a").when(load(1, "a", kv_type="q8_0")).then(stop("a")).when(gone("a")).then(start("a"))
    play.when(ready("a")).then(resident(1, "a", kv_type="q8_0", less=()))


def test_what_is_given_is_decided_once_the_memory_is_there() -> None:
    """The budget falls while the old model unloads: the load is given what fits by then."""
    play = Playbook("b", rules=BUDGET, limit_bytes=ONE).when(registered("a", traits=LESS)).then().given_ready("b")
    play.when(load(1, "a")).then(stop("b")).when(limit(plan_bytes(1024, "q8_0"))).then()
    play.when(gone("b")).then(start("a", ctx=1024))


def test_the_device_being_short_now_costs_context_before_it_costs_a_refusal() -> None:
    play = Playbook(rules=BUDGET, limit_bytes=4 * ONE).when(registered("a", traits=LESS)).then()
    play.when(read(0.7, available=plan_bytes(1024, "q8_0"))).then().when(load(1, "a")).then(start("a", ctx=1024))


# --- variants -----------------------------------------------------------------------------------------------


def with_variant(limit_bytes: int) -> Playbook:
    """Model a takes 2 GiB, and its variant does the same in 1 GiB."""
    play = Playbook("slim", rules=BUDGET, limit_bytes=limit_bytes)
    large = replace(SHAPE, tensor_bytes=2 * GIB)
    traits = Traits(degrade=False, variants=("unknown", "slim"))
    return play.when(registered("a", shape=large, traits=traits)).then()


def test_a_variant_is_given_where_the_model_itself_does_not_fit() -> None:
    play = with_variant(ONE).when(load(1, "a")).then(start("slim")).when(infer(2, "a")).then()
    play.when(ready("slim")).then(
        remember("slim"), resident(1, "slim", less=("slim instead of a",)), grant(2, "slim")
    )
    play.when(load(3, "a")).then(resident(3, "slim", changed=False, less=("slim instead of a",)))


def test_a_variant_is_not_given_where_the_model_fits_or_exactly_it_is_wanted() -> None:
    with_variant(3 * GIB).when(load(1, "a")).then(start("a"))
    with_variant(ONE).when(load(1, "a", exact=True)).then(refuse(1, "no_fit"))


def test_a_variant_that_does_not_fit_either_leaves_the_refusal_about_the_model() -> None:
    play = with_variant(GIB // 2).when(load(1, "a"))
    play.then(refuse(1, "no_fit")).when(load(2, "slim")).then(refuse(2, "no_fit"))


def test_a_resident_variant_serves_while_the_model_cannot_be_had_now() -> None:
    """Loads are refused under pressure, and nothing goes for what a pin keeps: but the variant is there."""
    play = with_variant(3 * GIB).given_ready("slim").when(read(0.92)).then(trims(), stop("slim"))
    play.when(load(1, "a")).then(refuse(1, "memory_pressure"))
    play = with_variant(3 * GIB).given_ready("slim").when(infer(1, "slim")).then(grant(1, "slim"))
    play.when(read(0.92)).then(trims()).when(load(2, "a")).then(resident(2, "slim", less=("slim instead of a",)))
    play = Playbook("slim", limit_bytes=3 * GIB).given_ready("slim").when(pin(1, "slim")).then(pinned_told(1, "slim"))
    traits = Traits(variants=("slim",))
    play.when(registered("a", traits=traits)).then().when(load(2, "a")).then(resident(2, "slim", changed=False))
    play.when(load(3, "a", exact=True)).then(refuse(3, "pinned"))
