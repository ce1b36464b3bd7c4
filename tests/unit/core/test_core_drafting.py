"""Draft models: who is whose, what they take, and that no load is refused for the sake of one."""

from dataclasses import replace

import pytest

from h2qd.core.drafting import DRAFT_CTX_MAX, draft_ctx, draft_plan, resolved
from h2qd.core.events import WorkerReady
from h2qd.core.lessons import Lesson
from h2qd.core.offers import has_draft, learned_bytes, offer_for, offers, parked_bytes, plan_of
from h2qd.core.plan import ModelShape
from h2qd.core.records import Draft, Model, Rules, State, Terms, Ticket, Traits, Want
from h2qd.core.states import Status
from tests.playbook import (
    CTX,
    GIB,
    MIB,
    SHAPE,
    Cue,
    Playbook,
    Scene,
    forget,
    forgotten,
    limit,
    load,
    plan_bytes,
    ready,
    registered,
    remember,
    resident,
    start,
)

BIG = replace(SHAPE, vocabulary=1000)
SMALL = replace(SHAPE, vocabulary=1000, tensor_bytes=GIB // 8, repacked_bytes=MIB, context_length=8192)
TRAITS = Traits(degrade=False, draft="small")
A = Model("a", BIG, CTX, TRAITS)


def with_draft(model: Model = A, draft: ModelShape = SMALL) -> Model:
    return resolved({"a": model, "small": Model("small", draft, CTX)})["a"]


def offered(model: Model, *, exact: bool = False) -> list[tuple[int, str, str]]:
    return [(terms.ctx, terms.kv_type, terms.draft) for terms in offers(model, 0, "", 1, exact=exact)]


# --- whose it is --------------------------------------------------------------------------------------


def test_a_model_has_the_draft_that_it_names() -> None:
    assert with_draft().draft == Draft("small", SMALL)
    plain = Model("b", BIG, CTX)
    models = resolved({"a": A, "b": plain, "small": Model("small", SMALL, CTX)})
    assert models["b"] is plain
    assert resolved(models)["a"] is models["a"], "nothing changed"


@pytest.mark.parametrize(
    ("model", "draft", "why"),
    [
        (BIG, replace(SMALL, vocabulary=999), "its vocabulary has 999 tokens, that of the model 1000"),
        (BIG, replace(SMALL, recurrent_bytes=1), "a recurrent model cannot take guesses back"),
        (replace(BIG, recurrent_bytes=1), SMALL, "a recurrent model cannot take guesses back"),
        (BIG, replace(SMALL, format="safetensors"), "both must be GGUF models"),
        (replace(BIG, format="ollama"), SMALL, "both must be GGUF models"),
    ],
)
def test_a_draft_that_cannot_be_one_is_named_with_the_reason(model: ModelShape, draft: ModelShape, why: str) -> None:
    found = with_draft(replace(A, shape=model), draft)
    assert found.draft == Draft("small", why=why)
    (terms,) = offers(found, 0, "", 1, exact=True)
    assert (terms.draft, terms.less) == ("", (f"without its draft small: {why}",))
    assert plan_of(found, 0) == plan_of(replace(found, draft=None), 0)


def test_drafts_come_and_go_with_their_models() -> None:
    def draft(scene: Playbook) -> Draft | None:
        return scene.state.models["a"].draft

    absent = Draft("small", why="it is not registered")
    script = Playbook().when(registered("a", shape=BIG, traits=TRAITS))
    assert draft(script) == absent
    script = script.when(registered("small", shape=SMALL))
    assert draft(script) == Draft("small", SMALL)
    other = replace(SMALL, tensor_bytes=MIB)
    script = script.when(registered("small", shape=other))
    assert draft(script) == Draft("small", other)


def test_a_draft_that_is_removed_is_one_no_more() -> None:
    script = Playbook().when(registered("a", shape=BIG, traits=TRAITS)).when(registered("small", shape=SMALL))
    assert has_draft(script.state.models["a"])
    gone = script.when(forget(1, "small")).then(forgotten(1, "small"))
    assert not has_draft(gone.state.models["a"])


# --- what it takes ------------------------------------------------------------------------------------


def test_its_context_is_a_small_one() -> None:
    assert draft_ctx(SMALL, CTX) == DRAFT_CTX_MAX
    assert draft_ctx(SMALL, 512) == 512
    assert draft_ctx(replace(SMALL, context_length=300), CTX) == 300
    assert draft_ctx(replace(SMALL, context_length=0), CTX) == DRAFT_CTX_MAX


def test_it_is_a_part_of_the_plan() -> None:
    model = with_draft()
    plan, without = plan_of(model, 0), plan_of(model, 0, drafted=False)
    part = dict(plan.parts)["draft"]
    assert part == draft_plan(SMALL, CTX).total_bytes == plan.total_bytes - without.total_bytes
    assert SMALL.tensor_bytes < part < draft_plan(SMALL, CTX).total_bytes + 1
    assert "draft" not in dict(without.parts)
    assert sum(size for _, size in plan.parts) == plan.total_bytes
    assert part < plan_bytes(DRAFT_CTX_MAX, shape=SMALL), "the process is there already"


def test_its_pages_are_the_files() -> None:
    first, second = offers(with_draft(), 0, "", 1, exact=True)
    assert first.file_bytes - second.file_bytes == SMALL.tensor_bytes


def test_a_parked_process_keeps_what_it_has_of_its_draft() -> None:
    model = with_draft()
    parts = dict(draft_plan(SMALL, CTX).parts)
    kept = [parked_bytes(replace(model, terms=Terms(CTX, draft=draft)), 1) for draft in ("", "small")]
    assert kept[1] - kept[0] == parts["repacked"] + parts["overhead"]


def test_loads_with_and_without_a_draft_teach_different_things() -> None:
    total = plan_of(with_draft(), 0).total_bytes
    lessons = (
        Lesson(CTX, 1, "f16", plan_bytes(shape=BIG), 2 * GIB),
        Lesson(CTX, 1, "f16", total, total + 9, "small"),
    )
    model = replace(with_draft(), lessons=lessons)
    assert learned_bytes(model, plan_of(model, 0), "", 1) == 9
    without = plan_of(model, 0, drafted=False)
    assert without.total_bytes + learned_bytes(model, without, "", 1) == min(
        2 * GIB, without.total_bytes + without.total_bytes // 2
    )


# --- what is offered ----------------------------------------------------------------------------------


def test_it_is_the_first_to_go() -> None:
    model = with_draft(replace(A, traits=replace(TRAITS, degrade=True)))
    assert offered(model)[:3] == [(CTX, "f16", "small"), (CTX, "f16", ""), (CTX, "q8_0", "")]


def test_who_wants_exactly_this_gets_it_without_the_draft_too() -> None:
    assert offered(with_draft()) == offered(with_draft(), exact=True) == [(CTX, "f16", "small"), (CTX, "f16", "")]


def test_without_room_a_load_goes_without() -> None:
    model = with_draft()
    for room, draft in ((plan_of(model, 0).total_bytes, "small"), (plan_bytes(shape=BIG), "")):
        state = State(Rules(exclusive=False), {"a": model}, limit_bytes=room)
        terms = offer_for(state, model, Ticket(1, 1, Want.RESIDENT, "a", 0.0, exact=True))
        assert isinstance(terms, Terms)
        assert terms.draft == draft
        assert terms.less == (() if draft else ("without its draft small: there is no room for it",))


def undrafted(model: str, why: str) -> Cue:
    """A worker has loaded its model, and not the draft."""

    def cue(scene: Scene) -> WorkerReady:
        return WorkerReady(scene.now, scene.worker(model), CTX, GIB, 0.5, 0, why)

    return cue


def test_a_draft_that_the_worker_refuses_is_planned_for_no_longer() -> None:
    script = (
        Playbook()
        .when(registered("a", shape=BIG, traits=TRAITS))
        .when(registered("small", shape=SMALL))
        .when(limit(8 * GIB))
        .when(load(1, "a"))
        .then(start("a"))
    )
    assert script.state.models["a"].terms.draft == "small"
    drafted = script.when(ready("a")).then(remember("a"), resident(1, "a", was_active=None))
    assert drafted.state.models["a"].planned_bytes == plan_of(drafted.state.models["a"], 0).total_bytes


def test_a_draft_that_the_worker_refuses_is_in_the_answer() -> None:
    script = (
        Playbook()
        .when(registered("a", shape=BIG, traits=TRAITS))
        .when(registered("small", shape=SMALL))
        .when(load(1, "a"))
        .then(start("a"))
        .when(undrafted("a", "its file cannot be read"))
        .then(
            remember("a"),
            resident(1, "a", was_active=None, less=("without its draft small: its file cannot be read",)),
        )
    )
    model = script.state.models["a"]
    assert model.status is Status.READY
    assert model.terms.draft == ""
    assert model.planned_bytes == model.terms.planned_bytes == plan_bytes(shape=BIG)


def test_what_a_worker_says_of_a_draft_that_nobody_wants_counts_for_nothing() -> None:
    script = (
        Playbook()
        .when(registered("a"))
        .when(load(1, "a"))
        .then(start("a"))
        .when(undrafted("a", "it lies"))
        .then(remember("a"), resident(1, "a", was_active=None))
    )
    assert script.state.models["a"].terms.less == ()
