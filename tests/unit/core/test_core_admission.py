"""What a request is told at the door, and the order in which the line is served."""

from dataclasses import replace

import pytest

from h2qd.core.machine import step
from h2qd.core.plan import ModelShape, memory_plan
from h2qd.core.records import Line, Rules, State, Ticket, Want
from h2qd.core.states import Status
from tests.playbook import (
    CTX,
    GIB,
    LOAD_FAILED,
    MIB,
    SHAPE,
    Playbook,
    answered,
    complete,
    dies,
    forget,
    forgotten,
    gone,
    grant,
    infer,
    limit,
    load,
    notice,
    ready,
    refuse,
    registered,
    remember,
    resident,
    start,
    stop,
    unload,
)

# --- refusals ----------------------------------------------------------------------------------------


def test_an_unknown_name_is_refused_with_the_names_that_come_near() -> None:
    (
        Playbook("qwen3-8b", "qwen3-4b", "gemma3")
        .when(infer(1, "qwen3-9b"))
        .then(refuse(1, "no_such_model", because=("did you mean qwen3-8b or qwen3-4b?",)))
        .when(load(2, "zzz"))
        .then(refuse(2, "no_such_model", because=(), message="cannot find a model named zzz"))
        .when(unload(3, "gemma"))
        .then(refuse(3, "no_such_model", because=("did you mean gemma3?",)))
    )


def test_an_unnamed_request_needs_an_active_model() -> None:
    Playbook("a").when(infer(1)).then(refuse(1, "no_active_model")).when(load(2)).then(refuse(2, "no_active_model"))


def test_a_model_that_can_never_fit_is_refused_with_its_largest_parts() -> None:
    plan = memory_plan(SHAPE, CTX)
    largest = sorted(plan.parts, key=lambda part: -part[1])[:3]
    Playbook("a", limit_bytes=GIB).when(load(1, "a")).then(
        refuse(
            1,
            "no_fit",
            message=(
                f"cannot load a with a context of {CTX}: it needs {plan.total_bytes / GIB:.2f} GiB, "
                "models may hold 1.00 GiB in all"
            ),
            because=tuple(f"{name}: {size / GIB:.2f} GiB" for name, size in largest),
            fix="",
        )
    )


def test_a_smaller_context_may_fit() -> None:
    (
        Playbook("a", limit_bytes=2 * GIB)
        .when(load(1, "a", ctx=131072))
        .then(refuse(1, "no_fit"))
        .when(load(2, "a", ctx=2048))
        .then(start("a", ctx=2048))
    )


def test_a_reload_that_cannot_fit_leaves_the_resident_model_alone() -> None:
    (
        Playbook("a", limit_bytes=2 * GIB)
        .given_ready("a")
        .when(load(1, "a", ctx=131072))
        .then(refuse(1, "no_fit"))
        .states(a=Status.READY)
    )


def test_the_limit_binds_from_when_it_is_read_and_not_before() -> None:
    (
        Playbook("a")
        .given_ready("a")
        .when(limit(MIB))
        .then()
        .states(a=Status.READY)
        .when(infer(1, "a"))
        .then(grant(1, "a"))
        .when(load(2, "a", ctx=8192))
        .then(refuse(2, "no_fit"))
    )


def test_the_cache_of_every_slot_counts() -> None:
    wide = Playbook("a", rules=Rules(slots=8)).when(load(1, "a", ctx=100)).then(start("a", ctx=100))
    narrow = Playbook("a").when(load(1, "a", ctx=100)).then(start("a", ctx=100))
    assert wide.state.models["a"].planned_bytes > narrow.state.models["a"].planned_bytes


def test_a_full_line_refuses_with_a_time_to_try_again() -> None:
    (
        Playbook("a", "b", rules=Rules(queue_max=2))
        .given_ready("a")
        .when(infer(1, "a"))
        .then(grant(1, "a"))
        .when(infer(2, "a"))
        .then()
        .when(infer(3, "a"))
        .then()
        .when(infer(4, "a"))
        .then(refuse(4, "queue_full", message="cannot queue: 2 requests wait for a", retry_after_s=1.0))
        .when(answered(1))
        .then(complete(1), grant(2, "a"))
        .when(infer(5, "a"))
        .then()
    )


def test_each_kind_of_request_has_a_line_of_its_own() -> None:
    (
        Playbook("a", rules=Rules(queue_max=1))
        .when(infer(1, "a"))
        .then(start("a"))
        .when(infer(2, "a"))
        .then(refuse(2, "queue_full"))
        .when(load(3, "a"))
        .then()
        .when(load(4, "a"))
        .then(refuse(4, "queue_full"))
        .when(ready("a"))
        .then(remember("a"), resident(3, "a"), grant(1, "a"))
    )


# --- fairness ----------------------------------------------------------------------------------------


def test_clients_take_turns_whatever_they_have_in_line() -> None:
    play = Playbook("a").given_ready("a").when(infer(1, "a", client=1)).then(grant(1, "a"))
    for request in range(2, 6):
        play.when(infer(request, "a", client=1)).then()
    play.when(infer(6, "a", client=2)).then().when(infer(7, "a", client=2)).then()
    order = [2, 6, 3, 7, 4, 5]
    last = 1
    for request in order:
        play.when(answered(last)).then(complete(last), grant(request, "a"))
        last = request


def test_a_stream_of_new_clients_does_not_keep_a_known_one_out() -> None:
    """Each call of a terminal tool is a client never seen before; they stand behind who waits already."""
    play = Playbook("a").given_ready("a").when(infer(1, "a", client=1)).then(grant(1, "a"))
    play.when(infer(2, "a", client=1)).then()
    play.when(infer(3, "a", client=3)).then().when(infer(4, "a", client=4)).then()
    play.when(answered(1)).then(complete(1), grant(2, "a"))
    play.when(infer(5, "a", client=1)).then().when(infer(6, "a", client=6)).then()
    play.when(answered(2)).then(complete(2), grant(3, "a"))
    play.when(answered(3)).then(complete(3), grant(4, "a"))
    play.when(answered(4)).then(complete(4), grant(5, "a"))
    play.when(answered(5)).then(complete(5), grant(6, "a"))


def test_the_memory_of_clients_is_bounded() -> None:
    play = Playbook("a").given_ready("a")
    for request in range(1, 1200):
        play.when(infer(request, "a", client=request)).then(grant(request, "a"))
        play.when(answered(request)).then(complete(request))
        if len(play.state.grants) == 1024 and request > 1100:
            break
    assert len(play.state.grants) == 1024
    assert min(play.state.grants) > 1


# --- priorities --------------------------------------------------------------------------------------


def line_of(play: Playbook, *tickets: tuple[int, int, int]) -> None:
    """Requests for a in line: number, client, priority."""
    for request, client, priority in tickets:
        play.when(infer(request, "a", client=client, priority=priority)).then()


def busy_a() -> Playbook:
    """By a request that pauses for nobody."""
    return Playbook("a").given_ready("a").when(infer(1, "a", client=1, priority=2)).then(grant(1, "a"))


def served(play: Playbook, running: int, *order: int, each_s: float = 1.0) -> None:
    """The requests in line are granted in this order, each a moment after the one before."""
    for following in order:
        play.later(each_s).when(answered(running)).then(complete(running), grant(following, "a"))
        running = following


def test_the_more_urgent_goes_first() -> None:
    play = busy_a()
    line_of(play, (2, 2, 0), (3, 3, 1), (4, 4, 2), (5, 5, 1))
    served(play, 1, 4, 3, 5, 2)


def test_who_waits_long_enough_is_as_urgent_as_anybody() -> None:
    """A low priority waits while others are new; after 30 s it stands its ground against the highest."""
    play = busy_a()
    line_of(play, (2, 2, 0))
    running = 1
    for request in range(3, 40):
        line_of(play, (request, request, 2))
        play.later(1.0).when(answered(running))
        running = next(iter(play.state.running))
        play.then(complete(request - 1 if request > 3 else 1), grant(running, "a"))
        if running == 2:
            break
    assert (running, play.now) == (2, 1030.0)


def test_a_crowd_of_one_client_does_not_grow_urgent_by_its_length() -> None:
    """Its requests wait for minutes behind each other; another client with the same priority has every other turn."""
    play = busy_a()
    line_of(play, *((request, 1, 1) for request in range(100, 160)))
    play.later(300.0)
    line_of(play, (2, 2, 1))
    served(play, 1, 100, 2, 101)
    line_of(play, (3, 2, 1))
    served(play, 101, 3, 102, each_s=100.0)
    line_of(play, (4, 2, 1))
    served(play, 102, 4, 103, each_s=100.0)


def test_a_clients_own_low_request_is_not_starved_by_its_own_high_ones() -> None:
    play = busy_a()
    line_of(play, (2, 1, 0), (3, 1, 2))
    served(play, 1, 3)
    line_of(play, (4, 1, 2))
    play.later(30.0)
    served(play, 3, 2, 4)


def test_a_more_urgent_one_need_not_wait_for_a_slot() -> None:
    """Whoever runs pauses for it; as many requests as there are slots may be paused at a time."""
    play = Playbook("a").given_ready("a").when(infer(1, "a", client=1, priority=0)).then(grant(1, "a"))
    play.when(infer(2, "a", client=2, priority=1)).then(grant(2, "a"))
    play.when(infer(3, "a", client=3, priority=2)).then()
    play.when(answered(2)).then(complete(2), grant(3, "a"))
    play.when(infer(4, "a", client=4, priority=2)).then()
    play.when(answered(3)).then(complete(3), grant(4, "a"))
    play.when(answered(4)).then(complete(4))
    play.when(answered(1)).then(complete(1))


def test_who_was_paused_for_long_is_not_paused_again() -> None:
    play = Playbook("a").given_ready("a").when(infer(1, "a", client=1, priority=0)).then(grant(1, "a"))
    play.later(14.0).when(infer(2, "a", client=2)).then(grant(2, "a"))
    play.later(1.0).when(answered(2)).then(complete(2))
    play.when(infer(3, "a", client=3)).then()
    play.when(infer(4, "a", client=4, priority=2)).then(grant(4, "a"))
    play.when(answered(4)).then(complete(4))
    play.when(answered(1)).then(complete(1), grant(3, "a"))


# --- the list of models ------------------------------------------------------------------------------


def test_registering_is_told_and_registering_again_changes_the_facts() -> None:
    play = Playbook().when(registered("a")).then().notices(notice("model.registered", "a"))
    bigger = ModelShape(tensor_bytes=GIB + MIB, context_length=100)
    play.when(registered("a", shape=bigger, ctx=50)).then().notices()
    assert (play.state.models["a"].shape, play.state.models["a"].ctx) == (bigger, 50)
    play.when(load(1, "a")).then(start("a", ctx=50))


def test_registering_a_resident_model_again_leaves_it_resident() -> None:
    (
        Playbook("a")
        .given_ready("a")
        .when(registered("a", shape=SHAPE, ctx=512))
        .then()
        .states(a=Status.READY)
        .when(load(1, "a"))
        .then(resident(1, "a", ctx=4096))
    )


def test_a_shape_that_grew_while_a_load_waits_counts() -> None:
    (
        Playbook("a", "b", limit_bytes=2 * GIB)
        .given_ready("a")
        .when(load(1, "b"))
        .then(stop("a"))
        .when(registered("b", shape=ModelShape(tensor_bytes=3 * GIB)))
        .then()
        .when(gone("a"))
        .then(refuse(1, "no_fit"))
    )


def test_a_model_is_forgotten() -> None:
    play = (
        Playbook("a", "b")
        .when(forget(1, "a"))
        .then(forgotten(1, "a"))
        .notices(notice("model.removed", "a"))
        .when(infer(2, "a"))
        .then(refuse(2, "no_such_model"))
        .when(forget(3, "a"))
        .then(refuse(3, "no_such_model"))
    )
    assert list(play.state.models) == ["b"]


def test_forgetting_the_active_model_leaves_none_active() -> None:
    (
        Playbook("a")
        .given_ready("a")
        .when(dies("a"))
        .then()
        .when(forget(1, "a"))
        .then(remember(None), forgotten(1, "a"))
        .when(infer(2))
        .then(refuse(2, "no_active_model"))
    )


def test_a_model_that_holds_memory_is_in_use() -> None:
    (
        Playbook("a")
        .when(load(1, "a"))
        .then(start("a"))
        .when(forget(2, "a"))
        .then(refuse(2, "in_use", message="cannot remove a: it is loading"))
    )


def test_a_model_that_requests_wait_for_is_in_use() -> None:
    (
        Playbook("a", "b")
        .when(load(1, "a"))
        .then(start("a"))
        .when(infer(2, "b"))
        .then()
        .when(forget(3, "b"))
        .then(refuse(3, "in_use", message="cannot remove b: requests wait for it"))
    )


def test_a_model_that_may_have_to_come_back_is_in_use() -> None:
    (
        Playbook("a", "b")
        .given_ready("a")
        .when(load(1, "b"))
        .then(stop("a"))
        .when(gone("a"))
        .then(start("b"))
        .when(forget(2, "a"))
        .then(refuse(2, "in_use", message="cannot remove a: the switch to b is about it"))
        .when(dies("b", LOAD_FAILED))
        .then(start("a"))
        .when(forget(3, "b"))
        .then(refuse(3, "in_use"))
    )


def test_a_model_that_the_switch_is_not_about_can_be_forgotten() -> None:
    (
        Playbook("a", "b", "c")
        .given_ready("a")
        .when(load(1, "b"))
        .then(stop("a"))
        .when(forget(2, "c"))
        .then(forgotten(2, "c"))
    )


def test_a_failed_model_can_be_forgotten_and_comes_back_with_a_clean_slate() -> None:
    (
        Playbook("a")
        .when(load(1, "a"))
        .then(start("a"))
        .when(dies("a", LOAD_FAILED))
        .then(refuse(1, "load_failed"))
        .when(forget(2, "a"))
        .then(forgotten(2, "a"))
        .when(registered("a"))
        .then()
        .when(infer(3, "a"))
        .then(start("a"))
    )


# --- the line ----------------------------------------------------------------------------------------


def ticket(request: int, model: str, want: Want = Want.INFER) -> Ticket:
    return Ticket(request, 1, want, model, 0.0)


def test_a_line_is_read_as_a_whole_and_by_model() -> None:
    line = Line()
    for each in (ticket(3, "a"), ticket(1, "b"), ticket(2, "a", Want.COLD)):
        line = line.joined(each)
    assert [t.request for t in line] == [3, 1, 2]
    assert len(line) == 3
    assert [t.request for t in line.of("a")] == [3, 2]
    assert [t.request for t in line.of("a", Want.COLD)] == [2]
    assert line.of("c") == ()
    assert [t.request for t in line.left((ticket(1, "b"),))] == [3, 2]
    line = line.left((ticket(3, "a"), ticket(1, "b")))
    assert [t.request for t in line] == [2]
    assert dict(line.by_model) == {"a": (ticket(2, "a", Want.COLD),)}


def test_a_line_that_everybody_left_is_as_good_as_new() -> None:
    assert Line().joined(ticket(1, "a")).left((ticket(1, "a"),)) == Line()


@pytest.mark.parametrize("model", ["", "a", "b"])
def test_a_step_changes_no_value_that_somebody_else_holds(model: str) -> None:
    play = Playbook("a").given_ready("a")
    state: State = play.state
    copy = replace(
        state,
        models=dict(state.models),
        waiting=Line(dict(state.waiting.by_request), dict(state.waiting.by_model)),
        running=dict(state.running),
        grants=dict(state.grants),
    )
    play.when(infer(1, model))
    assert state == copy
    assert step(state, infer(1, model)(play._scene()))[0] == play.state
