"""Models that nobody uses go by themselves, once the time that they may stay without work has passed."""

from h2qd.core.effects import Clock
from h2qd.core.events import TimerFired
from h2qd.core.machine import step
from h2qd.core.records import Rules, Traits
from h2qd.core.states import Status
from tests.playbook import (
    EXACT,
    GIB,
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
    infer,
    load,
    pin,
    pinned_told,
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

SHORT = Traits(degrade=False, ttl_s=60.0)


def short_lived(*others: str, rules: Rules | None = None, limit_bytes: int = 2 * GIB) -> Playbook:
    """Model a, which may be idle for a minute, just got ready."""
    play = Playbook(*others, rules=rules, limit_bytes=limit_bytes).when(registered("a", traits=SHORT)).then()
    play.when(load(-1, "a")).then(start("a")).timers()
    return play.when(ready("a")).then(remember("a"), resident(-1, "a")).timers(sets(Clock.IDLE, at=1060.0))


def test_an_idle_model_goes_after_its_time_and_is_loaded_again_when_asked_for() -> None:
    (
        short_lived()
        .when(fires(Clock.IDLE))
        .then(stop("a"))
        .timers()
        .states(a=Status.UNLOADING)
        .when(gone("a"))
        .then()
        .states(a=Status.COLD)
        .when(infer(1))
        .then(start("a"))
        .when(ready("a"))
        .then(grant(1, "a"))
        .timers()
    )


def test_work_stops_the_clock_and_its_end_starts_it_anew() -> None:
    (
        short_lived()
        .later(59.0)
        .when(infer(1, "a"))
        .then(grant(1, "a"))
        .timers(clears(Clock.IDLE))
        .later(100.0)
        .when(infer(2, "a"))
        .then()
        .timers()
        .when(answered(1))
        .then(complete(1), grant(2, "a"))
        .timers()
        .when(answered(2))
        .then(complete(2))
        .timers(sets(Clock.IDLE, at=1219.0))
        .when(fires(Clock.IDLE))
        .then(stop("a"))
    )


def test_who_asks_in_the_very_moment_gets_it_back() -> None:
    short_lived().when(fires(Clock.IDLE)).then(stop("a")).when(infer(1, "a")).then().when(gone("a")).then(start("a"))


def test_a_pinned_model_is_exempt_from_the_pin_on() -> None:
    (
        short_lived()
        .later(10.0)
        .when(pin(1, "a"))
        .then(pinned_told(1, "a"))
        .timers(clears(Clock.IDLE))
        .when(pin(2, "a", pinned=False))
        .then(pinned_told(2, "a", pinned=False))
        .timers(sets(Clock.IDLE, at=1060.0))
    )


def test_a_model_without_a_limit_stays() -> None:
    play = Playbook("a").given_ready("a").timers()
    assert play.state.models["a"].idle_since == play.now
    assert play.state.models["a"].expires_at is None


def test_other_facts_of_the_model_move_the_clock() -> None:
    play = short_lived().later(5.0)
    play.when(registered("a", traits=Traits(degrade=False, ttl_s=20.0))).then()
    play.timers(clears(Clock.IDLE), sets(Clock.IDLE, at=1020.0))
    play.when(registered("a", traits=EXACT)).then().timers(clears(Clock.IDLE))


def test_a_model_that_goes_otherwise_takes_its_clock_along() -> None:
    short_lived().when(unload(1, "a")).then(stop("a")).timers(clears(Clock.IDLE))
    short_lived().when(dies("a")).then().timers(clears(Clock.IDLE)).states(a=Status.COLD)
    short_lived("b").when(load(1, "b")).then(stop("a")).timers(clears(Clock.IDLE))


def test_a_clock_that_goes_off_late_changes_nothing() -> None:
    play = short_lived()
    (timer,) = play._scene().timers
    play.later(59.0).when(infer(1, "a")).then(grant(1, "a"))
    assert step(play.state, TimerFired(1060.0, timer)) == (play.state, ())
    play.when(answered(1)).then(complete(1))
    assert step(play.state, TimerFired(1060.0, timer)) == (play.state, ())
    play.when(unload(2, "a")).then(stop("a")).when(gone("a")).then(remember(None), cold(2, "a"))
    assert step(play.state, TimerFired(2000.0, timer))[1] == ()


def test_whoever_waits_for_the_model_keeps_it() -> None:
    """A reload for another context is under way: the model is awaited, not idle."""
    (
        short_lived(rules=Rules(exclusive=False))
        .when(infer(1, "a"))
        .then(grant(1, "a"))
        .when(infer(2, "a", ctx=8192, client=2))
        .then()
        .when(cancel(2))
        .then(refuse(2, "cancelled"))
        .timers(clears(Clock.PATIENCE))
        .when(answered(1))
        .then(complete(1))
        .timers(sets(Clock.IDLE, at=1060.0))
    )
