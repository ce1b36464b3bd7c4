"""Pinned models: never evicted, never unloaded by accident, and remembered."""

from h2qd.core.records import Memory, Rules
from h2qd.core.states import Status
from tests.playbook import (
    GIB,
    Playbook,
    answered,
    cold,
    complete,
    gone,
    grant,
    infer,
    kept,
    load,
    notice,
    pin,
    pinned_told,
    plan_bytes,
    ready,
    recalled,
    refuse,
    remember,
    resident,
    start,
    stop,
    stop_asked,
    unload,
)

BUDGET = Rules(exclusive=False)


def test_a_pin_is_told_remembered_and_ended_again() -> None:
    play = Playbook("a").given_ready("a")
    play.when(pin(1, "a")).then(pinned_told(1, "a")).notices(notice("model.pinned", "a")).memory(remember("a"))
    assert play.state.remembered == Memory("a", kept("a"), ("a",))
    play.when(pin(2, "a")).then(pinned_told(2, "a", changed=False)).notices().memory()
    play.when(pin(3, "a", pinned=False)).then(pinned_told(3, "a", pinned=False))
    play.notices(notice("model.unpinned", "a")).memory(remember("a"))
    play.when(pin(4, "a", pinned=False)).then(pinned_told(4, "a", pinned=False, changed=False)).notices().memory()


def test_a_pin_of_the_unknown_is_refused_with_what_comes_near() -> None:
    Playbook("gemma").when(pin(1, "gema")).then(refuse(1, "no_such_model", because=("did you mean gemma?",)))


def test_a_cold_model_can_be_pinned_and_stays_once_it_is_there() -> None:
    (
        Playbook("a", "b")
        .when(pin(1, "a"))
        .then(pinned_told(1, "a"))
        .given_ready("b")
        .when(load(2, "a"))
        .then(stop("b"))
        .when(gone("b"))
        .then(start("a"))
        .when(ready("a"))
        .then(remember("a"), resident(2, "a"))
        .when(load(3, "b"))
        .then(refuse(3, "pinned", fix="h2qctl unpin a"))
        .when(infer(4, "b"))
        .then(refuse(4, "pinned", retry_after_s=None))
        .when(pin(5, "a", pinned=False))
        .then(pinned_told(5, "a", pinned=False))
        .when(load(6, "b"))
        .then(stop("a"))
    )


def test_a_pinned_model_is_reloaded_when_somebody_asks_for_another_context_of_it() -> None:
    (
        Playbook("a")
        .given_ready("a")
        .when(pin(1, "a"))
        .then(pinned_told(1, "a"))
        .when(load(2, "a", ctx=8192))
        .then(stop("a"))
        .when(gone("a"))
        .then(start("a", ctx=8192))
        .when(ready("a"))
        .then(resident(2, "a", ctx=8192))
    )


def test_an_unload_of_a_pinned_model_takes_force() -> None:
    play = (
        Playbook("a")
        .given_ready("a")
        .when(pin(1, "a"))
        .then(pinned_told(1, "a"))
        .when(unload(2, "a"))
        .then(refuse(2, "pinned", fix="h2qctl unpin a   or   h2qctl unload a --force"))
        .states(a=Status.READY)
        .when(unload(3, "a", force=True))
        .then(stop("a"))
        .when(gone("a"))
        .then(remember(None), cold(3, "a"))
        .when(unload(4, "a"))
        .then(cold(4, "a"))
    )
    assert play.state.models["a"].pinned, "it is pinned again once it is loaded"


def test_a_load_while_a_pinned_model_leaves_by_force_waits_for_its_memory() -> None:
    (
        Playbook("a", "b", rules=BUDGET, limit_bytes=plan_bytes() + GIB // 2)
        .given_ready("a")
        .when(pin(1, "a"))
        .then(pinned_told(1, "a"))
        .when(unload(2, "a", force=True))
        .then(stop("a"))
        .when(load(3, "b"))
        .then()
        .when(gone("a"))
        .then(remember(None), cold(2, "a"), start("b"))
    )


def test_a_victim_that_is_pinned_while_the_switch_is_patient_stays() -> None:
    play = (
        Playbook("a", "b")
        .given_ready("a")
        .when(infer(1, "a"))
        .then(grant(1, "a"))
        .when(load(2, "b"))
        .then()
        .when(pin(3, "a"))
        .then(pinned_told(3, "a"), refuse(2, "pinned", fix="h2qctl unpin a"))
        .states(a=Status.READY)
        .when(answered(1))
        .then(complete(1))
    )
    assert play.state.switch is None


def test_under_a_budget_a_pin_makes_the_switch_choose_another_victim() -> None:
    (
        Playbook("a", "b", "c", rules=BUDGET, limit_bytes=2 * plan_bytes())
        .given_ready("a")
        .given_ready("b")
        .when(infer(1, "a"))
        .then(grant(1, "a"))
        .when(infer(2, "b", client=2))
        .then(grant(2, "b"))
        .when(load(3, "c"))
        .then()
        .when(pin(4, "a"))
        .then(pinned_told(4, "a"))
        .when(answered(1))
        .then(complete(1))
        .states(a=Status.READY)
        .when(answered(2))
        .then(complete(2), stop("b"))
        .when(gone("b"))
        .then(start("c"))
    )


def test_a_pin_of_what_an_overlap_replaces_gives_the_load_up() -> None:
    (
        Playbook("a", "b", limit_bytes=16 * GIB)
        .given_ready("a")
        .later(10.0)
        .when(infer(1, "a"))
        .then(grant(1, "a"))
        .when(load(2, "b"))
        .then(start("b"))
        .when(pin(3, "a"))
        .then(pinned_told(3, "a"), stop("b", at_once=True), refuse(2, "pinned"))
        .when(gone("b"))
        .then()
        .states(a=Status.READY, b=Status.COLD)
        .when(answered(1))
        .then(complete(1))
    )


def test_a_pin_that_comes_after_the_memory_was_given_away_comes_too_late() -> None:
    (
        Playbook("a", "b")
        .given_ready("a")
        .when(load(1, "b"))
        .then(stop("a"))
        .when(pin(2, "a"))
        .then(pinned_told(2, "a"))
        .when(gone("a"))
        .then(start("b"))
        .when(ready("b"))
        .then(remember("b"), resident(1, "b"))
        .when(infer(3, "a"))
        .then(stop("b"))
    )


def test_what_was_active_and_pinned_is_recalled() -> None:
    play = Playbook("a", "b").when(recalled("a", "b", "gone")).then(remember("a"))
    assert [m.name for m in play.state.models.values() if m.pinned] == ["b"]
    play.when(infer(1)).then(start("a")).when(ready("a")).then(grant(1, "a"))


def test_what_is_gone_from_the_list_is_not_recalled() -> None:
    play = Playbook("a").when(recalled("gone", "gone")).then().memory(remember(None))
    assert play.state.active is None
    play.when(recalled(None)).then().memory()


def test_a_stop_ends_pinned_models_and_remembers_them() -> None:
    play = Playbook("a").given_ready("a").when(pin(1, "a")).then(pinned_told(1, "a"))
    play.when(stop_asked()).then(stop("a")).memory()
    assert play.state.remembered == Memory("a", kept("a"), ("a",))
