"""Memory changing hands: patience, the barrier, force, and what becomes of the old model's clients."""

from h2qd.core.effects import Clock
from h2qd.core.records import Phase, Rules
from h2qd.core.states import Status
from tests.playbook import (
    CANCELLED,
    HELD,
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
    notice,
    ready,
    refuse,
    remember,
    resident,
    sets,
    start,
    stop,
)


def busy(rules: Rules | None = None) -> Playbook:
    """Model a runs request 1, and b is asked for as request 2."""
    return (
        Playbook("a", "b", "c", rules=rules)
        .given_ready("a")
        .when(infer(1, "a"))
        .then(grant(1, "a"))
        .when(load(2, "b"))
        .then()
        .timers(sets(Clock.PATIENCE, at=1002.0))
        .notices(notice("switch.phase", "b"))
        .states(a=Status.READY)
    )


def test_a_switch_takes_the_memory_of_an_idle_model_at_once() -> None:
    play = (
        Playbook("a", "b")
        .given_ready("a")
        .when(load(1, "b"))
        .then(stop("a"))
        .timers()
        .notices(notice("model.moved", "a"), notice("switch.phase", "b"))
        .states(a=Status.UNLOADING, b=Status.COLD)
        .when(gone("a"))
        .then(start("b"))
        .states(a=Status.COLD, b=Status.LOADING)
        .when(ready("b"))
        .then(remember("b"), resident(1, "b", changed=True, was_active="a"))
        .states(b=Status.READY)
    )
    assert play.state.switch is None


def test_the_answer_tells_what_the_unload_gave_back() -> None:
    answers = []
    play = Playbook("a", "b").given_ready("a").when(load(1, "b")).then(stop("a")).when(gone("a")).then(start("b"))
    assert play.state.switch is not None
    answers = list(play.state.switch.released)
    play.when(ready("b")).then(remember("b"), resident(1, "b", released=tuple(answers)))
    assert [(r.model, r.held_bytes, r.freed_bytes) for r in answers] == [("a", HELD, HELD)]


def test_a_pause_of_the_old_models_clients_begins_the_unload() -> None:
    (
        busy()
        .when(answered(1))
        .then(complete(1), stop("a"))
        .timers(clears(Clock.PATIENCE))
        .when(gone("a"))
        .then(start("b"))
        .when(ready("b"))
        .then(remember("b"), resident(2, "b"))
    )


def test_while_patience_lasts_the_old_model_goes_on_admitting() -> None:
    (
        busy()
        .later(1.9)
        .when(infer(3, "a"))
        .then()
        .when(answered(1))
        .then(complete(1), grant(3, "a"))
        .when(infer(4, "a"))
        .then()
        .when(answered(3))
        .then(complete(3), grant(4, "a"))
        .when(load(5, "a"))
        .then(resident(5, "a", changed=False))
        .when(answered(4))
        .then(complete(4), stop("a"))
    )


def test_after_patience_nothing_more_is_admitted_and_the_line_waits_for_the_switch_back() -> None:
    (
        busy()
        .when(infer(3, "a"))
        .then()
        .when(fires(Clock.PATIENCE))
        .then()
        .timers()
        .notices(notice("model.moved", "a"), notice("switch.phase", "b"))
        .states(a=Status.DRAINING)
        .when(load(4, "a"))
        .then()
        .when(infer(5, "b"))
        .then()
        .when(answered(1))
        .then(complete(1), stop("a"))
        .when(gone("a"))
        .then(start("b"))
        .when(ready("b"))
        .then(remember("b"), resident(2, "b"), grant(5, "b"))
        .timers(sets(Clock.PATIENCE, at=1004.0))
        .when(answered(5))
        .then(complete(5), stop("b"))
        .when(gone("b"))
        .then(start("a"))
        .when(ready("a"))
        .then(remember("a"), resident(4, "a", changed=True, was_active="b"), grant(3, "a"))
    )


def test_patience_is_over_at_once_when_there_is_none() -> None:
    (
        Playbook("a", "b", rules=Rules(patience_s=0.0))
        .given_ready("a")
        .when(infer(1, "a"))
        .then(grant(1, "a"))
        .when(load(2, "b"))
        .then()
        .when(fires(Clock.PATIENCE))
        .then()
        .states(a=Status.DRAINING)
    )


def test_force_cuts_the_running_work_off() -> None:
    (
        busy()
        .when(infer(3, "a"))
        .then()
        .when(load(4, "b", force=True))
        .then(halt(1, "a"), refuse(1, "unloaded"), stop("a"))
        .timers(clears(Clock.PATIENCE))
        .when(gone("a"))
        .then(start("b"))
        .when(ready("b"))
        .then(remember("b"), resident(2, "b"), resident(4, "b"), stop("b"))
    )


def test_force_ends_a_drain_too() -> None:
    (
        busy()
        .when(fires(Clock.PATIENCE))
        .then()
        .when(load(3, "b", force=True))
        .then(halt(1, "a"), refuse(1, "unloaded"), stop("a"))
        .timers()
    )


def test_force_begins_with_the_unload() -> None:
    (
        Playbook("a", "b")
        .given_ready("a")
        .when(infer(1, "a", deadline=1060.0))
        .then(grant(1, "a"))
        .when(load(2, "b", force=True))
        .then(halt(1, "a"), refuse(1, "unloaded"), stop("a"))
        .timers(sets(Clock.PATIENCE, at=1002.0), clears(Clock.DEADLINE), clears(Clock.PATIENCE))
    )


def test_force_takes_a_request_that_is_being_cancelled_along() -> None:
    """Its client asked to end it: that is what it hears of, and the timer that watches the cancel goes."""
    (
        busy()
        .when(cancel(1))
        .then(halt(1, "a"))
        .timers(sets(Clock.CANCEL, at=1005.0))
        .when(load(3, "b", force=True))
        .then(refuse(1, "cancelled"), stop("a"))
        .timers(clears(Clock.CANCEL), clears(Clock.PATIENCE))
    )


def test_force_of_a_later_switch_does_not_hasten_the_one_under_way() -> None:
    busy().when(load(3, "c", force=True)).then().states(a=Status.READY)


def test_the_next_switch_begins_for_whoever_waited_longest() -> None:
    (
        Playbook("a", "b", "c")
        .when(load(1, "a"))
        .then(start("a"))
        .when(load(2, "c"))
        .then()
        .when(load(3, "b"))
        .then()
        .when(ready("a"))
        .then(remember("a"), resident(1, "a"), stop("a"))
        .when(gone("a"))
        .then(start("c"))
        .when(ready("c"))
        .then(remember("c"), resident(2, "c"), stop("c"))
        .when(gone("c"))
        .then(start("b"))
    )


def test_a_switch_that_nobody_waits_for_any_more_is_called_off_in_patience() -> None:
    play = (
        busy()
        .when(infer(3, "b"))
        .then()
        .when(cancel(2))
        .then(refuse(2, "cancelled"))
        .when(cancel(3))
        .then(refuse(3, "cancelled"))
        .timers(clears(Clock.PATIENCE))
        .states(a=Status.READY)
    )
    assert play.state.switch is None


def test_a_switch_that_nobody_waits_for_any_more_is_called_off_in_drain() -> None:
    (
        busy(Rules(slots=2))
        .when(fires(Clock.PATIENCE))
        .then()
        .when(infer(3, "a"))
        .then()
        .states(a=Status.DRAINING)
        .when(cancel(2))
        .then(refuse(2, "cancelled"), grant(3, "a"))
        .timers()
        .states(a=Status.READY)
    )


def test_a_switch_called_off_in_drain_gives_way_to_the_next() -> None:
    """The model of the third takes over; the old model admits again while that switch is patient."""
    play = (
        busy()
        .when(fires(Clock.PATIENCE))
        .then()
        .when(load(3, "c"))
        .then()
        .when(cancel(2))
        .then(refuse(2, "cancelled"))
        .timers(sets(Clock.PATIENCE, at=1004.0))
        .states(a=Status.READY)
    )
    assert play.state.switch is not None
    assert (play.state.switch.target, play.state.switch.phase) == ("c", Phase.PATIENCE)


def test_cancelling_while_the_old_model_unloads_loads_nothing() -> None:
    (
        Playbook("a", "b")
        .given_ready("a")
        .when(load(1, "b"))
        .then(stop("a"))
        .when(cancel(1))
        .then(refuse(1, "cancelled"))
        .when(gone("a"))
        .then()
        .states(a=Status.COLD, b=Status.COLD)
        .when(infer(2))
        .then(start("a"))
    )


def test_cancelling_while_the_new_model_loads_leaves_nothing_resident() -> None:
    (
        Playbook("a", "b")
        .given_ready("a")
        .when(load(1, "b"))
        .then(stop("a"))
        .when(gone("a"))
        .then(start("b"))
        .when(cancel(1))
        .then(refuse(1, "cancelled"), stop("b", at_once=True))
        .when(gone("b"))
        .then()
        .states(a=Status.COLD, b=Status.COLD)
        .when(infer(2))
        .then(start("a"))
    )


def test_the_old_model_is_reloaded_for_a_client_that_came_while_the_load_was_given_up() -> None:
    (
        Playbook("a", "b")
        .given_ready("a")
        .when(load(1, "b"))
        .then(stop("a"))
        .when(gone("a"))
        .then(start("b"))
        .when(infer(2, "a"))
        .then()
        .when(cancel(1))
        .then(refuse(1, "cancelled"), stop("b", at_once=True))
        .when(gone("b"))
        .then(start("a"))
        .when(ready("a"))
        .then(grant(2, "a"))
    )


def test_the_old_model_crashing_in_patience_makes_room() -> None:
    (
        busy()
        .when(infer(3, "a"))
        .then()
        .when(dies("a"))
        .then(refuse(1, "worker_crashed"), start("b"))
        .timers(clears(Clock.PATIENCE))
        .states(a=Status.COLD, b=Status.LOADING)
        .when(ready("b"))
        .then(remember("b"), resident(2, "b", released=()), stop("b"))
    )


def test_the_old_model_crashing_in_drain_makes_room() -> None:
    (
        busy()
        .when(fires(Clock.PATIENCE))
        .then()
        .when(dies("a"))
        .then(refuse(1, "worker_crashed"), start("b"))
        .states(a=Status.COLD)
    )


def test_the_old_model_crashing_while_it_unloads_is_an_unload() -> None:
    play = (
        Playbook("a", "b").given_ready("a").when(load(1, "b")).then(stop("a")).when(dies("a")).then(start("b"))
    ).states(a=Status.COLD)
    assert play.state.models["a"].failures == ()


def test_a_reload_waits_for_the_models_own_clients() -> None:
    (
        Playbook("a")
        .given_ready("a")
        .when(infer(1, "a"))
        .then(grant(1, "a"))
        .when(load(2, "a", ctx=8192))
        .then()
        .when(infer(3, "a"))
        .then()
        .when(answered(1))
        .then(complete(1), grant(3, "a"))
        .when(answered(3, CANCELLED))
        .then(refuse(3, "cancelled"), stop("a"))
        .when(infer(4, "a"))
        .then()
        .when(gone("a"))
        .then(start("a", ctx=8192))
        .when(ready("a"))
        .then(resident(2, "a", ctx=8192), grant(4, "a"))
    )


def test_two_clients_that_alternate_each_get_their_turn() -> None:
    """Thrash is bounded: each residency serves at least who it was for, and in between patience is kept."""
    play = Playbook("a", "b").when(infer(1, "a", client=1)).then(start("a"))
    play.when(infer(2, "b", client=2)).then()
    play.when(ready("a")).then(remember("a"), grant(1, "a"))
    here, there = "a", "b"
    for request in range(3, 20):
        now_served, in_line = request - 2, request - 1
        play.when(answered(now_served)).then(complete(now_served), stop(here))
        play.when(infer(request, here, client=1 + request % 2)).then()
        play.when(gone(here)).then(start(there))
        play.when(ready(there)).then(remember(there), grant(in_line, there))
        here, there = there, here
