"""The watchman is watched: each invariant names the state that breaks it; and the table of moves is what is drawn."""

from dataclasses import replace
from itertools import product

import pytest

from h2qd.core.effects import Effect
from h2qd.core.events import WorkerExited, WorkerReady
from h2qd.core.invariants import _broken, _broken_switch, check
from h2qd.core.machine import step
from h2qd.core.records import Breaker, Fault, Line, Model, Phase, Rules, Running, State, Switch, Terms, Ticket, Want
from h2qd.core.states import HOLDING, TABLE, Move, Status, mermaid, next_status
from h2qd.core.switching import _victims
from h2qd.core.turn import Turn, worker_of
from tests.playbook import CRASH, SHAPE


def model(name: str, status: Status = Status.COLD, worker: int | None = None, held_bytes: int = 0) -> Model:
    return Model(name, SHAPE, 4096, status=status, worker=worker, given_ctx=4096, held_bytes=held_bytes)


def ticket(request: int, name: str, want: Want = Want.INFER) -> Ticket:
    return Ticket(request, 1, want, name, 0.0)


def switch(phase: Phase, target: str = "b", victims: tuple[str, ...] = (), fallback: str | None = None) -> Switch:
    return Switch(1, target, Terms(4096), phase, 0.0, victims, fallback=fallback)


def state(
    *models: Model,
    waiting: tuple[Ticket, ...] = (),
    running: tuple[Running, ...] = (),
    under_way: Switch | None = None,
    active: str | None = None,
) -> State:
    line = Line()
    for each in waiting:
        line = line.joined(each)
    return State(
        models={m.name: m for m in models},
        waiting=line,
        running={r.ticket.request: r for r in running},
        switch=under_way,
        active=active,
    )


COLD_A, COLD_B = model("a"), model("b")
READY_A = model("a", Status.READY, 1)
DRAINING_A = model("a", Status.DRAINING, 1)
UNLOADING_A = model("a", Status.UNLOADING, 1)
LOADING_A, LOADING_B = model("a", Status.LOADING, 1), model("b", Status.LOADING, 1)
RUN = Running(ticket(1, "a"), 1, 0.0)
WANT_B = ticket(2, "b")

BROKEN = {
    "two models share a worker": state(READY_A, model("b", Status.READY, 1)),
    "the exclusive policy holds, and two models are to hold memory": state(READY_A, model("b", Status.READY, 2)),
    "a is ready and its worker is None": state(model("a", Status.READY)),
    "a is cold and its worker is 1": state(model("a", Status.COLD, 1)),
    "a is cold and holds 5 bytes": state(model("a", held_bytes=5)),
    "a is cold and holds 0 bytes": state(replace(model("a"), planned_bytes=5)),
    "a loads outside of a switch": state(LOADING_A),
    "a is ready and b is active": state(READY_A, COLD_B, active="b"),
    "a drains for nobody": state(DRAINING_A, running=(RUN,)),
    "a is ready and is to leave": state(replace(READY_A, leaving="idle"), active="a"),
    "a is timed for being idle, and is not": state(replace(READY_A, expires_at=9.0), active="a"),
    "the active model a is not registered": state(active="a"),
    "a request is in two places": state(READY_A, waiting=(ticket(1, "a"),), running=(RUN,)),
    "the lines of the models are not the line of all": State(
        models={"a": READY_A}, waiting=Line({1: ticket(1, "a")}, {})
    ),
    "request 2 waits for a model that is not registered": state(waiting=(WANT_B,)),
    "work waits for a, whose server is away": replace(
        state(replace(READY_A, server="box"), waiting=(ticket(1, "a"),), active="a"),
        breakers={"box": Breaker(retry_at=9.0)},
    ),
    "more requests of kind infer wait for a than may": replace(
        state(READY_A, waiting=(ticket(2, "a"), ticket(3, "a")), running=(RUN,)), rules=Rules(queue_max=1)
    ),
    "request 1 runs on a worker that is not resident": state(UNLOADING_A, running=(RUN,)),
    "a runs more requests than its engine takes": state(
        READY_A, running=(RUN, *(Running(ticket(request, "a"), 1, 0.0) for request in (2, 3)))
    ),
    "a runs more requests than it has slots, and none of them pauses for another": state(
        READY_A, running=tuple(Running(replace(ticket(n, "a"), priority=2), 1, 0.0) for n in (1, 2))
    ),
    "the switch is about a model that is not registered": state(COLD_A, under_way=switch(Phase.LOAD)),
    "nobody waits for the switch's target": state(
        UNLOADING_A, COLD_B, under_way=switch(Phase.UNLOAD, victims=("a",))
    ),
    "the switch waits for work to end and none runs": state(
        READY_A, COLD_B, waiting=(WANT_B,), under_way=switch(Phase.PATIENCE, victims=("a",))
    ),
    "a victim admits work although patience is over": state(
        READY_A, COLD_B, waiting=(WANT_B,), running=(RUN,), under_way=switch(Phase.DRAIN, victims=("a",))
    ),
    "the switch waits for unloads and none is under way": state(
        COLD_A, COLD_B, waiting=(WANT_B,), under_way=switch(Phase.UNLOAD, victims=("a",))
    ),
    "a victim is resident although its unload is awaited": state(
        READY_A,
        COLD_B,
        model("c", Status.UNLOADING, 2),
        waiting=(WANT_B,),
        under_way=switch(Phase.UNLOAD, victims=("a", "c")),
    ),
    "the switch is in its load and nothing loads": state(
        COLD_A, COLD_B, waiting=(WANT_B,), under_way=switch(Phase.LOAD)
    ),
    "the switch is in its rollback and nothing loads": state(
        COLD_A, COLD_B, under_way=switch(Phase.ROLLBACK, fallback=None)
    ),
    "requests wait for a rollback and none is under way": state(
        COLD_A, LOADING_B, waiting=(WANT_B,), under_way=replace(switch(Phase.LOAD), losers=(ticket(9, "b"),))
    ),
    "requests wait or a switch goes on although the daemon stops": replace(
        state(UNLOADING_A, waiting=(ticket(2, "a"),)), stopping=True
    ),
    "stopped is True, while stopping is True and memory held is True": replace(
        state(UNLOADING_A), stopping=True, stopped=True
    ),
    "stopped is False, while stopping is True and memory held is False": replace(state(COLD_A), stopping=True),
    "request 2 waits for b (cold), and nothing moves": state(COLD_B, waiting=(WANT_B,)),
    "request 2 waits for a (cold), and nothing moves": state(COLD_A, waiting=(ticket(2, "a", Want.COLD),)),
    "request 2 waits for a (ready), and nothing moves": state(READY_A, waiting=(ticket(2, "a"),)),
    "request 3 waits for a (ready), and nothing moves": state(
        READY_A, waiting=(ticket(3, "a", Want.RESIDENT),), running=(RUN,)
    ),
}

WHOLE = {
    "a request runs and one waits for its slot": state(READY_A, waiting=(ticket(2, "a"),), running=(RUN,)),
    "an unload is awaited": state(UNLOADING_A, waiting=(ticket(2, "a", Want.COLD), ticket(3, "a"))),
    "a drain for an unload": state(DRAINING_A, waiting=(ticket(2, "a", Want.COLD), ticket(3, "a")), running=(RUN,)),
    "patience": state(
        READY_A, COLD_B, waiting=(WANT_B,), running=(RUN,), under_way=switch(Phase.PATIENCE, victims=("a",))
    ),
    "a drain for whoever took its place": state(
        replace(DRAINING_A, leaving="b took its place"), model("b", Status.READY, 2), running=(RUN,), active="b"
    ),
    "an overlap": state(
        READY_A,
        model("b", Status.LOADING, 2),
        waiting=(WANT_B,),
        running=(RUN,),
        under_way=replace(switch(Phase.LOAD), overlapped=("a",)),
    ),
    "a parked process beside the resident model": state(model("b", Status.PARKED, 2), READY_A),
    "a switch to a parked model whose process goes all the same": state(
        COLD_A, model("b", Status.UNLOADING, 2), waiting=(WANT_B,), under_way=switch(Phase.UNLOAD)
    ),
    "idle for now": state(replace(READY_A, expires_at=9.0, idle_since=1.0)),
    "drain": state(
        DRAINING_A, COLD_B, waiting=(WANT_B,), running=(RUN,), under_way=switch(Phase.DRAIN, victims=("a",))
    ),
    "unload": state(UNLOADING_A, COLD_B, waiting=(WANT_B,), under_way=switch(Phase.UNLOAD, victims=("a",))),
    "load": state(COLD_A, LOADING_B, waiting=(WANT_B,), under_way=switch(Phase.LOAD, victims=("a",))),
    "rollback": state(LOADING_A, COLD_B, under_way=replace(switch(Phase.ROLLBACK, fallback="a"), losers=(WANT_B,))),
    "the end": replace(state(COLD_A), stopping=True, stopped=True),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_named(what: str) -> None:
    assert check(BROKEN[what]) is not None
    assert any(what == each for each in _broken(BROKEN[what]))


def test_a_switch_about_the_unknown_is_not_looked_into_further() -> None:
    what = "the switch is about a model that is not registered"
    assert list(_broken_switch(BROKEN[what])) == [what]


@pytest.mark.parametrize("what", WHOLE)
def test_what_is_whole_is_left_in_peace(what: str) -> None:
    assert check(replace(WHOLE[what], active=WHOLE[what].active or "a")) is None


# --- defects of the core itself are loud ---------------------------------------------------------------


def test_a_load_outside_of_a_switch_is_a_defect() -> None:
    with pytest.raises(AssertionError, match="a loads outside of a switch"):
        step(state(LOADING_A), WorkerReady(0.0, 1, 4096, 1, 0.1))
    with pytest.raises(AssertionError, match="loads outside of a switch"):
        step(state(LOADING_A), WorkerExited(0.0, 1, CRASH))


def test_a_load_that_was_offered_and_has_no_room_is_a_defect() -> None:
    full = replace(state(COLD_A, replace(model("b", Status.READY, 1, held_bytes=9), pinned=True)), limit_bytes=10)
    with pytest.raises(AssertionError, match="no victims make room for a, though it fits"):
        _victims(Turn(full, 0.0), "a", Terms(planned_bytes=2))


def test_memory_without_a_worker_is_a_defect() -> None:
    with pytest.raises(AssertionError, match="a is ready without a worker"):
        worker_of(model("a", Status.READY))


def test_a_move_that_the_table_does_not_hold_is_a_defect() -> None:
    turn = Turn(state(COLD_A), 0.0)
    with pytest.raises(KeyError):
        turn.move("a", Move.RELEASE)


# --- the table -----------------------------------------------------------------------------------------


def test_every_status_can_be_entered_and_left() -> None:
    assert {was for was, _ in TABLE} == set(Status)
    assert set(TABLE.values()) == set(Status)
    assert {move for _, move in TABLE} == set(Move)


def test_memory_is_taken_by_a_load_only_and_given_back_by_the_end_of_a_worker_only() -> None:
    for (was, move), now in TABLE.items():
        resumes = was is Status.PARKED
        assert (was not in HOLDING and now in HOLDING) == (move is Move.LOAD and not resumes)
        assert (was in HOLDING and now not in HOLDING) == (was in HOLDING and move in (Move.GONE, Move.FAIL))


def test_the_table_is_closed() -> None:
    for was, move in product(Status, Move):
        if (was, move) in TABLE:
            assert next_status(was, move) is TABLE[was, move]
        else:
            with pytest.raises(KeyError):
                next_status(was, move)


def test_the_drawing_shows_each_move_once() -> None:
    drawn = mermaid().splitlines()
    assert drawn[:2] == ["stateDiagram-v2", "    [*] --> cold"]
    assert len(drawn) == len(set(drawn)) == len(TABLE) + 2
    assert "    ready --> draining: drain" in drawn


def test_a_story_is_bounded_and_keeps_its_end() -> None:
    turn = Turn(state(READY_A), 0.0)
    for at in range(100):
        turn.now = float(at)
        turn.move("a", Move.DRAIN)
        turn.move("a", Move.RESUME, "again")
    story = turn.state.models["a"].story
    assert len(story) == 64
    assert (story[-1].at, story[-1].was, story[-1].now, story[-1].detail) == (
        99.0,
        Status.DRAINING,
        Status.READY,
        "again",
    )


def test_a_turn_writes_nothing_twice() -> None:
    """Becoming active again is no news; refusing a request that is nowhere still answers it."""
    turn = Turn(state(READY_A, active="a"), 0.0)
    before = turn.state
    turn.activate("a")
    turn.refuse(ticket(7, "a"), Fault("cancelled", "x"))
    assert turn.state is before
    kinds: list[type[Effect]] = [type(effect) for effect in turn.effects]
    assert [kind.__name__ for kind in kinds] == ["Refuse"]
