"""What a load can be given: the order in which less is offered, and the reasons when nothing can be."""

from dataclasses import replace

import pytest

from h2qd.core.lessons import Lesson
from h2qd.core.offers import offer_for, offers, parked_bytes
from h2qd.core.plan import ModelShape, memory_plan
from h2qd.core.records import Fault, Model, Rules, State, Terms, Ticket, Traits, Want
from h2qd.core.states import Status
from tests.playbook import CTX, GIB, MIB, SHAPE, plan_bytes

LESS = Traits(min_ctx=1024)
A = Model("a", SHAPE, CTX, LESS)
TIGHT = Rules(exclusive=False)


def ticket(*, ctx: int = 0, kv_type: str = "", exact: bool = False) -> Ticket:
    return Ticket(1, 1, Want.RESIDENT, "a", 0.0, ctx=ctx, kv_type=kv_type, exact=exact)


def offered(model: Model = A, ctx: int = 0, kv_type: str = "", *, exact: bool = False) -> list[tuple[int, str]]:
    return [(terms.ctx, terms.kv_type) for terms in offers(model, ctx, kv_type, 1, exact=exact)]


def there(name: str, planned_bytes: int, *, pinned: bool = False, status: Status = Status.READY) -> Model:
    return Model(name, SHAPE, CTX, pinned=pinned, status=status, worker=9, planned_bytes=planned_bytes)


def state(*models: Model, limit: int, available: int = 2**53, rules: Rules = TIGHT) -> State:
    return State(rules, {m.name: m for m in (A, *models)}, limit_bytes=limit, available_bytes=available)


def fault(outcome: Terms | Fault) -> Fault:
    assert isinstance(outcome, Fault)
    return outcome


# --- what is offered, in which order --------------------------------------------------------------------


def test_precision_hardly_felt_goes_first_then_context_then_precision_that_is_felt() -> None:
    assert offered() == [(4096, "f16"), (4096, "q8_0"), (2048, "q8_0"), (1024, "q8_0"), (1024, "q4_0")]


def test_each_offer_takes_less_than_the_one_before_and_says_what_was_asked() -> None:
    choice = list(offers(A, 3000, "", 1, exact=False))
    sizes = [terms.planned_bytes for terms in choice]
    assert sizes == sorted(set(sizes), reverse=True)
    assert {(terms.asked_ctx, terms.asked_kv) for terms in choice} == {(3000, "f16")}
    assert choice[0].less == ()
    assert choice[-1].less == ("context 1024 instead of 3000", "KV cache q4_0 instead of f16")
    assert [terms.ctx for terms in choice] == [3000, 3000, 1500, 1024, 1024]


def test_who_opted_out_is_offered_what_was_asked_for() -> None:
    assert offered(exact=True) == [(4096, "f16")]
    assert offered(replace(A, traits=Traits(degrade=False))) == [(4096, "f16")]


def test_what_was_asked_for_is_never_made_finer() -> None:
    assert offered(kv_type="q8_0", ctx=1024) == [(1024, "q8_0"), (1024, "q4_0")]
    assert offered(kv_type="q4_0", ctx=2048) == [(2048, "q4_0"), (1024, "q4_0")]
    assert offered(replace(A, traits=replace(LESS, kv_type="q8_0")), ctx=1024) == [(1024, "q8_0"), (1024, "q4_0")]


def test_a_context_below_the_least_is_left_as_it_is() -> None:
    assert offered(ctx=512) == [(512, "f16"), (512, "q8_0"), (512, "q4_0")]


@pytest.mark.parametrize("min_ctx", [0, -5])
def test_a_context_never_shrinks_to_nothing(min_ctx: int) -> None:
    assert min(ctx for ctx, _ in offered(replace(A, traits=Traits(min_ctx=min_ctx)))) == 1


@pytest.mark.parametrize(
    "shape",
    [
        replace(SHAPE, key_length=80),
        replace(SHAPE, value_length=48),
        replace(SHAPE, kv_heads=(0,)),
        ModelShape(tensor_bytes=GIB, context_length=131072),
    ],
)
def test_a_cache_that_cannot_be_kept_in_blocks_stays_as_it_is(shape: ModelShape) -> None:
    assert offered(replace(A, shape=shape)) == [(4096, "f16"), (2048, "f16"), (1024, "f16")]


def test_lessons_count_in_every_offer() -> None:
    taught = replace(A, lessons=(Lesson(CTX, 1, "f16", plan_bytes(), plan_bytes() + 10 * MIB),))
    for terms in offers(taught, 0, "", 1, exact=False):
        assert terms.planned_bytes == plan_bytes(terms.ctx, terms.kv_type) + 10 * MIB


def test_a_parked_process_holds_itself_and_what_only_it_has() -> None:
    shape = replace(SHAPE, repacked_bytes=100 * MIB)
    overhead = dict(memory_plan(shape, CTX).parts)["overhead"]
    assert parked_bytes(replace(A, shape=shape, terms=Terms(CTX)), 1) == 100 * MIB + overhead


# --- what a ticket is offered ----------------------------------------------------------------------------


def test_the_best_that_fits_is_offered() -> None:
    for ctx, kv_type in offered():
        assert offer_for(state(limit=plan_bytes(ctx, kv_type)), A, ticket()) == Terms(
            ctx, kv_type, plan_bytes(ctx, kv_type), CTX, "f16", GIB
        )


def test_models_that_may_go_are_not_in_the_way_and_pinned_ones_are() -> None:
    limit = plan_bytes() + GIB
    for others in ([there("b", GIB)], [there("b", GIB, pinned=True)], [there("b", 2 * GIB), there("c", 2 * GIB)]):
        assert isinstance(offer_for(state(*others, limit=limit), A, ticket()), Terms)
    in_the_way = [there("b", GIB, pinned=True), there("c", GIB, pinned=True)]
    assert fault(offer_for(state(*in_the_way, limit=limit), A, ticket())).code == "no_fit"


@pytest.mark.parametrize("status", [Status.UNLOADING, Status.PARKED])
@pytest.mark.parametrize("rules", [TIGHT, Rules()])
def test_a_pin_keeps_nothing_that_is_on_its_way_out(status: Status, rules: Rules) -> None:
    going = there("b", GIB, pinned=True, status=status)
    assert isinstance(offer_for(state(going, limit=plan_bytes(), rules=rules), A, ticket()), Terms)


def test_one_model_at_a_time_means_that_a_pinned_one_bars_the_others() -> None:
    barred = fault(offer_for(state(there("b", 1, pinned=True), limit=2**50, rules=Rules()), A, ticket()))
    assert (barred.code, barred.fix, barred.retry_after_s) == ("pinned", "h2qctl unpin b", None)
    itself = replace(A, pinned=True, status=Status.READY, worker=1)
    assert isinstance(offer_for(state(itself, limit=2**50, rules=Rules()), itself, ticket()), Terms)


def test_what_the_device_has_now_decides_how_much_is_given() -> None:
    """The budget has room for more; as long as something fits what is there now, that is given."""
    now = plan_bytes(2048, "q8_0")
    assert offer_for(state(limit=16 * GIB, available=now), A, ticket()) == Terms(2048, "q8_0", now, CTX, "f16", GIB)


def test_a_device_that_is_short_now_gets_the_load_by_its_budget_unless_the_rules_are_strict() -> None:
    short = state(limit=16 * GIB, available=GIB // 2)
    assert offer_for(short, A, ticket()) == Terms(CTX, "f16", plan_bytes(), CTX, "f16", GIB)
    gone = replace(short, available_bytes=plan_bytes(1024, "q4_0") - GIB - 1)
    assert fault(offer_for(gone, A, ticket())).code == "memory_pressure", "without the file's pages it would not fit"
    strict = replace(short, rules=replace(TIGHT, strict=True))
    refusal = fault(offer_for(strict, A, ticket()))
    assert (refusal.code, refusal.retry_after_s) == ("memory_pressure", 5.0)
    assert refusal.message == (
        f"cannot load a: it needs {plan_bytes(1024, 'q4_0') / GIB:.2f} GiB, the device has 0.50 GiB for models now"
    )
    assert fault(offer_for(replace(strict, limit_bytes=GIB), A, ticket())).code == "no_fit"


def test_what_others_run_in_a_server_here_counts_though_the_kernel_could_have_its_pages_back() -> None:
    there_bytes = 16 * GIB - plan_bytes(2048, "q8_0")
    shared = replace(state(limit=16 * GIB, available=16 * GIB), foreign_bytes=there_bytes)
    now = plan_bytes(2048, "q8_0")
    assert offer_for(shared, A, ticket()) == Terms(2048, "q8_0", now, CTX, "f16", GIB)
    full = replace(shared, foreign_bytes=17 * GIB)
    assert offer_for(full, A, ticket()) == Terms(CTX, "f16", plan_bytes(), CTX, "f16", GIB), "slow, but it is done"
    refusal = fault(offer_for(replace(full, rules=replace(TIGHT, strict=True)), A, ticket()))
    assert refusal.code == "memory_pressure"
    assert refusal.because[-1] == "17.00 GiB are with models that others loaded in a server here"


def test_strict_rules_count_what_has_to_go_as_there() -> None:
    held = replace(there("b", GIB), held_bytes=GIB)
    strict = replace(TIGHT, strict=True)
    assert isinstance(offer_for(state(held, limit=16 * GIB, available=GIB, rules=strict), A, ticket()), Terms)


def test_a_buffer_stays_free() -> None:
    rules = replace(TIGHT, buffer_bytes=GIB, strict=True)
    enough = state(limit=16 * GIB, available=plan_bytes() + GIB, rules=rules)
    assert offer_for(enough, A, ticket(exact=True)) == Terms(CTX, "f16", plan_bytes(), CTX, "f16", GIB)
    short = replace(enough, available_bytes=plan_bytes() + GIB - 1)
    assert fault(offer_for(short, A, ticket(exact=True))).code == "memory_pressure"


# --- what is told when it does not fit -------------------------------------------------------------------


def test_a_refusal_names_what_is_pinned_the_largest_parts_and_what_less_would_still_take() -> None:
    refusal = fault(offer_for(state(there("b", 3 * GIB, pinned=True), limit=4 * GIB), A, ticket()))
    assert refusal.message == (
        f"cannot load a with a context of 4096: it needs {plan_bytes() / GIB:.2f} GiB, "
        "models may hold 1.00 GiB beside what is pinned"
    )
    assert refusal.because[:3] == ("b (3.00 GiB) is pinned", "weights: 1.00 GiB", "kv_cache: 0.06 GiB")
    assert refusal.because[-1] == (
        "with context 1024 instead of 4096 and KV cache q4_0 instead of f16 it would still need "
        f"{plan_bytes(1024, 'q4_0') / GIB:.2f} GiB"
    )
    assert refusal.retry_after_s is None


def test_the_fix_is_the_smallest_pinned_model_that_is_enough() -> None:
    pinned = [there(name, size * GIB, pinned=True) for name, size in (("big", 4), ("small", 1), ("middle", 2))]
    assert fault(offer_for(state(*pinned, limit=7 * GIB), A, ticket())).fix == "h2qctl unpin middle"
    assert fault(offer_for(state(*pinned, limit=6 * GIB), A, ticket())).fix == "h2qctl unpin big"
    assert fault(offer_for(state(*pinned, limit=3 * GIB), A, ticket())).fix == ""


def test_there_is_no_fix_where_no_one_model_is_enough() -> None:
    pinned = [there("b", GIB, pinned=True), there("c", GIB, pinned=True)]
    heavy = replace(A, shape=replace(SHAPE, tensor_bytes=2 * GIB))
    assert fault(offer_for(state(*pinned, limit=2 * GIB), heavy, ticket())).fix == ""
    assert fault(offer_for(state(limit=GIB), heavy, ticket())).fix == ""


def test_the_fix_of_who_wants_nothing_less_is_to_ask_for_less() -> None:
    least = plan_bytes(2048, "q8_0")
    offer = offer_for(state(limit=least), A, ticket(exact=True))
    assert fault(offer).fix == f"h2qctl load a --ctx 2048 --kv-type q8_0 ({least / GIB:.2f} GiB)"
    rigid = replace(A, traits=Traits(degrade=False))
    assert fault(offer_for(state(limit=least), rigid, ticket())).fix == fault(offer).fix
    plain = fault(offer_for(state(limit=plan_bytes(2048, "q8_0")), A, ticket(kv_type="q8_0", exact=True)))
    assert plain.fix == f"h2qctl load a --ctx 2048 ({least / GIB:.2f} GiB)"


def test_both_fixes_are_told_where_both_would_help() -> None:
    pinned = there("b", GIB, pinned=True)
    refusal = fault(offer_for(state(pinned, limit=GIB + plan_bytes(2048, "q8_0")), A, ticket(exact=True)))
    unpin, less = refusal.fix.split("   or   ")
    assert unpin == "h2qctl unpin b"
    assert less.startswith("h2qctl load a --ctx 2048 --kv-type q8_0")
