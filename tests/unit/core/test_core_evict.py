"""Who goes so that another model fits: pure choices, one rule a test."""

from dataclasses import replace
from time import perf_counter

import pytest

from h2qd.core.evict import idle_first, is_busy, is_kept, victims
from h2qd.core.records import Line, Model, Rules, Running, State, Ticket, Traits, Want
from h2qd.core.states import HOLDING, Status
from tests.playbook import CTX, SHAPE

NOW = 1000.0
BUDGET = Rules(exclusive=False)
NEW = Model("new", SHAPE, CTX)


def model(
    name: str,
    size: int = 10,
    *,
    status: Status = Status.READY,
    load_s: float = 1.0,
    idle_s: float = 0.0,
    priority: int = 0,
    pinned: bool = False,
) -> Model:
    return Model(
        name,
        SHAPE,
        CTX,
        Traits(priority=priority),
        pinned=pinned,
        status=status,
        worker=hash(name),
        planned_bytes=size,
        load_s=load_s,
        idle_since=NOW - idle_s,
    )


def state(*models: Model, busy: tuple[str, ...] = (), rules: Rules = BUDGET) -> State:
    running = {
        number: Running(Ticket(number, 1, Want.INFER, name, NOW), hash(name), NOW) for number, name in enumerate(busy)
    }
    return State(rules, {m.name: m for m in (NEW, *models)}, running=running)


def chosen(*models: Model, need: int, bound: int, busy: tuple[str, ...] = ()) -> tuple[str, ...] | None:
    return victims(state(*models, busy=busy), "new", need, bound, NOW)


def test_nobody_goes_where_there_is_room() -> None:
    assert chosen(model("a"), model("b"), need=10, bound=30) == ()


def test_as_many_go_as_are_needed() -> None:
    three = (model("a"), model("b"), model("c"))
    assert chosen(*three, need=10, bound=30) == ("a",)
    assert chosen(*three, need=11, bound=30) == ("a", "b")
    assert chosen(*three, need=30, bound=30) == ("a", "b", "c")


def test_what_cannot_fit_has_no_victims() -> None:
    assert chosen(model("a"), need=31, bound=30) is None
    assert chosen(model("a"), model("b", pinned=True), need=21, bound=30) is None


def test_pinned_models_stay() -> None:
    assert chosen(model("a", pinned=True, load_s=0.1), model("b", load_s=9.0), need=10, bound=20) == ("b",)


def test_parked_processes_go_before_resident_models() -> None:
    assert chosen(model("a", priority=-5), model("b", 10, status=Status.PARKED), need=10, bound=20) == ("b",)


def test_an_idle_model_goes_before_a_busy_one_whatever_it_costs() -> None:
    dear = model("b", load_s=1000.0, priority=9)
    assert chosen(model("a"), dear, need=10, bound=20, busy=("a",)) == ("b",)
    assert chosen(model("a"), dear, need=20, bound=20, busy=("a",)) == ("a", "b")


def test_as_few_busy_models_as_possible_go() -> None:
    two_small_busy = (model("a", 5), model("b", 5), model("c", 10, load_s=99.0))
    assert chosen(*two_small_busy, need=10, bound=20, busy=("a", "b", "c")) == ("c",)


def test_whoever_is_waited_for_is_busy() -> None:
    waiting = Line().joined(Ticket(1, 1, Want.INFER, "a", NOW))
    with_line = replace(state(model("a"), model("b", load_s=99.0)), waiting=waiting)
    assert is_busy(with_line, with_line.models["a"])
    assert not is_busy(with_line, with_line.models["b"])
    assert victims(with_line, "new", 10, 20, NOW) == ("b",)


def test_the_lower_priority_goes_first_then_what_loads_faster() -> None:
    assert chosen(model("a", priority=1, load_s=0.1), model("b", load_s=9.0), need=10, bound=20) == ("b",)
    assert chosen(model("a", load_s=2.0), model("b", load_s=1.0), need=10, bound=20) == ("b",)


def test_the_longer_a_model_was_idle_the_less_its_reload_counts() -> None:
    assert chosen(model("a", load_s=3.0, idle_s=180.0), model("b", load_s=1.0), need=10, bound=20) == ("a",)
    assert chosen(model("a", load_s=3.0, idle_s=60.0), model("b", load_s=1.0), need=10, bound=20) == ("b",)


def test_a_model_that_was_never_measured_is_taken_to_load_by_its_size() -> None:
    size = 200_000_000
    models = (model("a", size, load_s=0.0), model("b", size, load_s=1.5))
    assert chosen(*models, need=size, bound=2 * size) == ("a",)
    models = (model("a", size, load_s=0.0), model("b", size, load_s=0.5))
    assert chosen(*models, need=size, bound=2 * size) == ("b",)


def test_a_model_that_works_counts_its_whole_reload() -> None:
    working = replace(model("a", load_s=1.0), idle_since=None)
    assert chosen(working, model("b", load_s=1.1, idle_s=60.0), need=10, bound=20) == ("b",)


def test_several_small_models_go_or_one_large_whichever_costs_less() -> None:
    small = (model("a", 5, load_s=1.0), model("b", 5, load_s=1.0))
    assert chosen(*small, model("c", 10, load_s=3.0), need=10, bound=20) == ("a", "b")
    assert chosen(*small, model("c", 10, load_s=1.5), need=10, bound=20) == ("c",)


def test_of_equal_choices_the_one_that_frees_less_goes_then_the_first_by_name() -> None:
    assert chosen(model("a", 20), model("b", 10), need=10, bound=30) == ("b",)
    assert chosen(model("b"), model("a"), need=10, bound=20) == ("a",)


def test_what_is_on_its_way_out_is_waited_for_before_anybody_goes() -> None:
    going = model("a", status=Status.UNLOADING)
    assert chosen(going, model("b"), need=10, bound=20) == ("a",)
    assert chosen(going, model("b"), need=20, bound=20) == ("a", "b")
    assert chosen(going, model("b"), need=10, bound=30) == (), "it is not waited for where there is room beside it"
    pinned = replace(going, pinned=True)
    assert chosen(pinned, need=10, bound=10) == ("a",), "somebody took it out by force"


def test_the_target_itself_goes_first_where_it_is_resident_on_other_terms() -> None:
    for status, itself in [
        (Status.READY, ("a",)),
        (Status.DRAINING, ("a",)),
        (Status.UNLOADING, ("a",)),
        (Status.PARKED, ()),
    ]:
        assert victims(state(model("a", status=status)), "a", 10, 10, NOW) == itself
    assert victims(state(model("b"), model("a", pinned=True)), "a", 10, 10, NOW) == ("a", "b")


def test_one_model_at_a_time_means_that_all_others_go() -> None:
    world = state(model("a", 1), model("b", 1), model("c", 1, status=Status.PARKED), rules=Rules())
    assert victims(world, "new", 1, 100, NOW) == ("a", "b")
    assert victims(world, "new", 100, 100, NOW) == ("a", "b", "c")
    pinned = state(model("a", 1, pinned=True), rules=Rules())
    assert victims(pinned, "new", 1, 100, NOW) is None


@pytest.mark.parametrize("count", [8, 9, 60])
def test_a_crowd_is_chosen_from_quickly_and_nobody_goes_in_vain(count: int) -> None:
    crowd = [model(f"m{number:02}", 10 + number, load_s=1.0 + number % 7) for number in range(count)]
    held = sum(m.planned_bytes for m in crowd)
    began = perf_counter()
    gone = chosen(*crowd, need=100, bound=held)
    assert perf_counter() - began < 0.2
    assert gone is not None
    freed = sorted(crowd[int(name[1:])].planned_bytes for name in gone)
    assert sum(freed) >= 100 > sum(freed[1:]), "without the smallest of them it would not fit"


def test_a_whole_crowd_goes_where_nothing_less_is_enough() -> None:
    crowd = [model(f"m{number}", 10) for number in range(9)]
    assert chosen(*crowd, need=90, bound=90) == tuple(sorted(m.name for m in crowd))


def test_of_a_crowd_the_cheapest_by_the_byte_go_and_none_that_is_busy() -> None:
    crowd = [model(f"m{number}", 10, load_s=5.0) for number in range(9)]
    cheap = model("cheap", 30, load_s=6.0)
    assert chosen(*crowd, cheap, need=20, bound=120) == ("cheap",)
    assert chosen(*crowd, cheap, need=20, bound=120, busy=("cheap",)) == ("m0", "m1")
    assert chosen(*crowd, replace(cheap, planned_bytes=0, load_s=0.0), need=20, bound=90) == ("m0", "m1")


# --- who could go right now ------------------------------------------------------------------------------


def test_idle_models_in_the_order_in_which_they_go() -> None:
    world = state(
        model("dear", load_s=9.0),
        model("cheap", load_s=1.0),
        model("urgent", priority=1),
        model("pinned", pinned=True, load_s=0.1),
        model("parked", status=Status.PARKED, load_s=99.0),
        model("works"),
        model("loads", status=Status.LOADING),
        model("drains", status=Status.DRAINING),
        busy=("works",),
    )
    names = [m.name for m in idle_first(world, NOW)]
    assert names == ["parked", "cheap", "dear", "urgent"]
    assert [m.name for m in idle_first(world, NOW, pinned=True)] == [*names, "pinned"]


def test_a_pin_keeps_what_is_resident_or_about_to_be() -> None:
    kept = {status for status in HOLDING if is_kept(model("a", status=status, pinned=True))}
    assert kept == {Status.LOADING, Status.READY, Status.DRAINING}
    assert not is_kept(replace(model("a", status=Status.DRAINING, pinned=True), leaving="b took its place"))
    assert not is_kept(model("a"))
