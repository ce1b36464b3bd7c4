"""What memory is spoken for: charges, layers, and what models may still be given."""

from h2qd.core import budget
from h2qd.core.budget import Limits
from h2qd.core.records import Model, Rules, State
from h2qd.core.states import HOLDING, Status
from tests.playbook import (
    CTX,
    GIB,
    HELD,
    SHAPE,
    Playbook,
    dies,
    gone,
    load,
    measured,
    plan_bytes,
    read,
    ready,
    registered,
    remember,
    resident,
    start,
    stop,
)


def model(name: str, status: Status, planned_bytes: int, held_bytes: int) -> Model:
    return Model(name, SHAPE, CTX, status=status, worker=1, planned_bytes=planned_bytes, held_bytes=held_bytes)


def of(*models: Model, **fields: int | Rules) -> State:
    return State(models={m.name: m for m in models}, **fields)  # type: ignore[arg-type]


def test_a_model_is_charged_its_plan_or_what_it_holds_whichever_is_more() -> None:
    assert budget.charge(model("a", Status.READY, 3, 2)) == 3
    assert budget.charge(model("a", Status.READY, 2, 3)) == 3
    assert budget.charge(model("a", Status.LOADING, 2, 0)) == 2
    assert budget.charge(model("a", Status.PARKED, 0, 1)) == 1


def test_a_model_is_charged_until_its_process_is_proved_gone() -> None:
    for status in Status:
        assert budget.charge(model("a", status, 2, 3)) == (3 if status in HOLDING else 0)


def test_the_charge_follows_a_model_through_its_life() -> None:
    play = Playbook("a")
    charges = []

    def note() -> None:
        charges.append(budget.charge(play.state.models["a"]))

    note()
    play.when(load(1, "a")).then(start("a"))
    note()
    play.when(ready("a", held=GIB)).then(remember("a"), resident(1, "a"))
    note()
    play.when(measured("a", 2 * GIB)).then()
    note()
    play.when(load(2, "a", ctx=1024)).then(stop("a"))
    note()
    play.when(dies("a")).then(start("a", ctx=1024))
    planned = play.state.models["a"].planned_bytes
    assert charges == [0, plan_bytes(), plan_bytes(), 2 * GIB, 2 * GIB]
    assert planned > plan_bytes(1024), "the second load is planned with what the first has taught"


def test_what_is_left_of_the_budget_may_be_less_than_nothing() -> None:
    state = of(model("a", Status.READY, 5, 4), model("b", Status.UNLOADING, 2, 6), limit_bytes=10)
    assert budget.free(state) == -1
    assert budget.free(state, {"b"}) == 5
    assert budget.free(state, {"a", "b"}) == 10
    assert [m.name for m in budget.others(state, "a")] == ["b"]


def test_room_is_the_budget_or_what_the_device_has_beside_what_models_hold() -> None:
    held = model("a", Status.READY, 5, 4)
    assert budget.room(of(held, limit_bytes=10, available_bytes=100)) == 10
    assert budget.room(of(held, limit_bytes=10, available_bytes=3)) == 7
    assert budget.room(of(held, limit_bytes=10, available_bytes=3, rules=Rules(buffer_bytes=2))) == 5
    assert budget.room(of(held, limit_bytes=10, available_bytes=0, rules=Rules(buffer_bytes=9))) == 0


def test_what_a_model_gave_back_can_be_had_before_the_next_reading_says_so() -> None:
    """The device has room for one model. A reading came while the first was there; the second gets all the same."""
    play = (
        Playbook("a", "b", rules=Rules(strict=True), limit_bytes=16 * GIB)
        .given_ready("a")
        .when(read(0.5, available=plan_bytes() - HELD))
        .then()
    )
    room = budget.room(play.state)
    play.when(load(1, "b")).then(stop("a")).when(gone("a")).then(start("b"))
    assert budget.room(play.state) == room == plan_bytes()


def test_a_crash_gives_back_what_the_model_held() -> None:
    play = Playbook("a", limit_bytes=16 * GIB).given_ready("a").when(read(0.5, available=GIB)).then()
    room = budget.room(play.state)
    play.when(dies("a")).then()
    assert (budget.room(play.state), play.state.available_bytes) == (room, GIB + HELD)


def test_limits_add_up_or_say_what_is_wrong() -> None:
    assert Limits(max_bytes=10, models_bytes=7, working_bytes=2, buffer_bytes=1).fault == ""
    assert Limits(max_bytes=9, models_bytes=7, working_bytes=2, buffer_bytes=1).fault == (
        "models, working memory and the safety buffer take 10 bytes, of 9 in all"
    )


def test_each_layer_of_the_ledger_adds_up_to_its_limit() -> None:
    limits = Limits(max_bytes=100, models_bytes=10, working_bytes=4, buffer_bytes=3)
    state = of(
        model("a", Status.READY, 5, 4),
        model("b", Status.LOADING, 8, 0),
        model("c", Status.COLD, 0, 0),
        limit_bytes=10,
    )
    models, working, buffer = layers = budget.ledger(limits, state, working_bytes=1)
    assert [(layer.name, layer.reserved_bytes, layer.committed_bytes) for layer in layers] == [
        ("models", 9, 4),
        ("working", 0, 1),
        ("buffer", 3, 0),
    ]
    assert [(layer.free_bytes, layer.over_bytes) for layer in layers] == [(0, 3), (3, 0), (0, 0)]
    for layer in (models, working, buffer):
        spoken_for = layer.reserved_bytes + layer.committed_bytes
        assert spoken_for + layer.free_bytes - layer.over_bytes == layer.limit_bytes


def test_a_model_that_holds_more_than_its_plan_has_nothing_reserved() -> None:
    state = of(model("a", Status.READY, 5, 6), limit_bytes=10)
    (models, *_) = budget.ledger(Limits(20, 10, 4, 3), state, 0)
    assert (models.reserved_bytes, models.committed_bytes, models.free_bytes) == (0, 6, 4)


def test_a_registration_alone_is_charged_nothing() -> None:
    play = Playbook().when(registered("a")).then()
    assert budget.free(play.state) == play.state.limit_bytes
