"""In an emergency memory comes back: what is cut off is not begun anew. And how much there is, is not told twice."""

from h2qd.core import budget
from h2qd.core.records import Rules
from h2qd.core.states import Status
from tests.playbook import (
    GIB,
    HELD,
    Playbook,
    answered,
    complete,
    gone,
    grant,
    halt,
    infer,
    load,
    plan_bytes,
    read,
    ready,
    refuse,
    remember,
    resident,
    start,
    stop,
    trims,
)

EMERGENCY, FINE = 0.97, 0.5
BUDGET = Rules(exclusive=False)


def test_no_answer_begins_in_an_emergency_and_all_go_on_after_it() -> None:
    play = Playbook("a").given_ready("a").when(infer(1, "a")).then(grant(1, "a")).when(infer(2, "a")).then()
    play.when(read(EMERGENCY)).then(trims(), halt(1, "a"))
    play.when(answered(1)).then(refuse(1, "memory_pressure")).when(infer(3, "a")).then()
    play.when(read(FINE)).then().later(5.0).when(read(FINE)).then(grant(2, "a"))
    play.when(answered(2)).then(complete(2), grant(3, "a")).states(a=Status.READY)


def test_a_model_that_was_cut_off_goes_though_others_wait_for_it_and_they_are_told() -> None:
    play = Playbook("a").given_ready("a").when(infer(1, "a")).then(grant(1, "a")).when(infer(2, "a")).then()
    play.when(read(EMERGENCY)).then(trims(), halt(1, "a"))
    play.when(answered(1)).then(refuse(1, "memory_pressure"))
    play.when(read(EMERGENCY)).then(stop("a"), refuse(2, "memory_pressure", retry_after_s=5.0))
    play.when(gone("a")).then().states(a=Status.COLD)


def test_what_a_load_took_is_not_free_for_the_next() -> None:
    """The reading was taken before; the second load knows what the first one holds."""
    play = Playbook("a", "b", rules=BUDGET, limit_bytes=16 * GIB).when(read(FINE, plan_bytes() + GIB // 2))
    play.when(load(1, "a")).then(start("a")).when(ready("a")).then(remember("a"), resident(1, "a"))
    assert play.state.available_bytes == plan_bytes() + GIB // 2 - HELD
    play.when(load(2, "b")).then(stop("a")).when(gone("a")).then(start("b"))


def test_a_reading_in_the_middle_of_a_load_counts_nothing_twice() -> None:
    """Half of the load is taken already, so half of it is missing from what is read: there is room as before."""
    play = Playbook("a", rules=BUDGET, limit_bytes=16 * GIB).when(read(FINE, 4 * GIB)).when(load(1, "a"))
    play.then(start("a")).when(read(FINE, 4 * GIB - HELD // 2))
    assert budget.room(play.state) == 4 * GIB
    play.when(read(FINE, 3 * GIB - plan_bytes()))
    assert budget.room(play.state) == 3 * GIB, "more is missing than the load can have taken"
    play.when(read(FINE, 5 * GIB))
    assert budget.room(play.state) == 5 * GIB


def test_a_reading_in_the_middle_of_an_unload_counts_nothing_twice() -> None:
    play = Playbook("a", "b").given_ready("a").when(read(FINE, GIB)).when(load(1, "b")).then(stop("a"))
    play.when(read(FINE, GIB + HELD // 2))
    assert play.state.available_bytes == GIB, "some of what it held is back"
    play.when(read(FINE, GIB + HELD + GIB // 4))
    assert play.state.available_bytes == GIB + GIB // 4, "more is back than it held"
    play.when(gone("a")).then(start("b"))
    assert play.state.available_bytes == 2 * GIB + GIB // 4
