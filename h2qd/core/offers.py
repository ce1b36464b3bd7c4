"""Offers: what a load can be given. First what was asked for, then less and less of it.

A draft model goes first, which changes no answer; then precision that is hardly felt (a KV cache of 8 bits), then
context, half by half, then precision that is (4 bits). Who opted out of that, by `exact` or in the configuration, is
offered what was asked for, with its draft or without, and nothing else.
Called by `admission` and `switching` with the same question, so that what is promised is what is done. Pure.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from h2qd.core import budget, evict, remote_plan
from h2qd.core.drafting import draft_plan
from h2qd.core.lessons import correction_bytes
from h2qd.core.plan import MemoryPlan, ModelShape, memory_plan
from h2qd.core.records import F16, Fault, Model, State, Terms, Ticket
from h2qd.core.torch_plan import torch_plan

_GIB = 2**30
SAFETENSORS = "safetensors"
_KV_BLOCK = 32
"""Quantized caches come in blocks of so many elements; heads of other lengths cannot be cached so."""


@lru_cache(maxsize=256)
def _plan(shape: ModelShape, ctx: int, slots: int, kv_type: str) -> MemoryPlan:
    """Each admission asks for the plans of the same few loads again, and a plan is most of what a step costs."""
    if shape.format == SAFETENSORS:
        return torch_plan(shape, ctx, slots)
    if shape.format in remote_plan.FORMATS:
        return remote_plan.remote_plan(shape, ctx)
    return memory_plan(shape, ctx, slots, kv_type)


_draft_plan = lru_cache(maxsize=256)(draft_plan)


def effective_ctx(model: Model, ctx: int) -> int:
    """The context a load asks for: the wanted or the model's own default, within what the model was made for."""
    wanted = ctx or model.ctx
    return min(wanted, model.shape.context_length) if model.shape.context_length else wanted


def effective_kv(model: Model, kv_type: str) -> str:
    """The KV cache that a load asks for."""
    return kv_type or model.traits.kv_type


def plan_of(model: Model, ctx: int, kv_type: str = "", slots: int = 1, *, drafted: bool = True) -> MemoryPlan:
    """The memory that a load would take before any learning; each of its slots has a context of `ctx` to itself.

    `drafted`: with its draft model, if it has one.
    """
    own_ctx = effective_ctx(model, ctx)
    plan = replace(_plan(model.shape, own_ctx * slots, slots, effective_kv(model, kv_type)), ctx=own_ctx)
    if not drafted or not has_draft(model):
        return plan
    size = sum(_draft_parts(model, own_ctx).values())
    return replace(plan, parts=(*plan.parts, ("draft", size)), total_bytes=plan.total_bytes + size)


def has_draft(model: Model) -> bool:
    """Whether it has a draft model that can be loaded with it."""
    return model.draft is not None and model.draft.shape is not None


def _draft_parts(model: Model, ctx: int) -> dict[str, int]:
    """What its draft model takes, if it has one, beside a context of `ctx` for each slot."""
    shape = model.draft.shape if model.draft is not None else None
    return dict(_draft_plan(shape, ctx).parts) if shape is not None else {}


def learned_bytes(model: Model, plan: MemoryPlan, kv_type: str, slots: int) -> int:
    """By how much loads of a model that were measured differ from such a plan."""
    draft = model.traits.draft if "draft" in dict(plan.parts) else ""
    return correction_bytes(model.lessons, plan.ctx, slots, effective_kv(model, kv_type), plan.total_bytes, draft)


def planned_bytes(model: Model, ctx: int, kv_type: str, slots: int, *, drafted: bool = True) -> int:
    """What a load is expected to take, with what was learned."""
    plan = plan_of(model, ctx, kv_type, slots, drafted=drafted)
    return plan.total_bytes + learned_bytes(model, plan, kv_type, slots)


def offers(model: Model, ctx: int, kv_type: str, slots: int, *, exact: bool) -> Iterator[Terms]:
    """What a load can be given, best first."""
    choice = _all_offers(model, ctx, kv_type, slots)
    yield next(choice)
    if has_draft(model):
        yield next(choice)
    if model.traits.degrade and not exact:
        yield from choice


def _all_offers(model: Model, ctx: int, kv_type: str, slots: int) -> Iterator[Terms]:
    """What a load could be given if any less would do."""
    asked_ctx, asked_kv = effective_ctx(model, ctx), effective_kv(model, kv_type)

    def terms(ctx: int, kv_type: str, *, drafted: bool = False) -> Terms:
        size = planned_bytes(model, ctx, kv_type, slots, drafted=drafted)
        mapped = dict(plan_of(model, ctx, kv_type, slots).parts)["weights"]
        without = ""
        if drafted:
            mapped += _draft_parts(model, ctx)["weights"]
        elif model.draft is not None:
            without = model.draft.missing("there is no room for it" if has_draft(model) else "")
        draft = model.traits.draft if drafted else ""
        return Terms(ctx, kv_type, size, asked_ctx, asked_kv, min(size, mapped), draft, without)

    if has_draft(model):
        yield terms(asked_ctx, asked_kv, drafted=True)
    yield terms(asked_ctx, asked_kv)
    least_ctx = min(asked_ctx, max(1, model.traits.min_ctx))
    quantizes = _quantizes(model)
    kv = "q8_0" if quantizes and asked_kv == F16 else asked_kv
    if kv != asked_kv:
        yield terms(asked_ctx, kv)
    ctx = asked_ctx
    while ctx > least_ctx:
        ctx = max(least_ctx, ctx // 2)
        yield terms(ctx, kv)
    if quantizes and kv != "q4_0":
        yield terms(least_ctx, "q4_0")


def parked_bytes(model: Model, slots: int) -> int:
    """What a resident model is expected to hold when it is parked: its process, and copies that only it has."""
    parts = dict(plan_of(model, model.terms.ctx, model.terms.kv_type, slots).parts)
    draft = _draft_parts(model, model.terms.ctx) if model.terms.draft else {}
    ours = parts["repacked"] + parts["overhead"] + parts["adapters"]
    return ours + draft.get("repacked", 0) + draft.get("overhead", 0)


def _quantizes(model: Model) -> bool:
    """Whether the engine can keep this model's KV cache in blocks."""
    shape = model.shape
    if shape.format == SAFETENSORS or shape.format in remote_plan.FORMATS:
        return False
    return any(shape.kv_heads) and shape.key_length % _KV_BLOCK == 0 and shape.value_length % _KV_BLOCK == 0


def offer_for(state: State, model: Model, ticket: Ticket) -> Terms | Fault:
    """The best that a ticket's load can be given, or why it can be given nothing.

    1. One model at a time is the rule, and another one is pinned: nothing.
    2. What fits beside the pinned models, and is there on the device now.
    3. Else, unless the rules are strict, what fits the budget, and the device without its safety buffer and without
       the file's pages: slow perhaps, but nothing that would run it out of memory.
    4. Else it does not fit: for good, or because of what is pinned.
    """
    choice = tuple(offers(model, ticket.ctx, ticket.kv_type, state.rules.slots, exact=ticket.exact))
    pinned = [m for m in budget.others(state, model.name) if evict.is_kept(m)]
    if pinned and state.rules.exclusive:
        return _in_the_way(model, pinned[0])
    taken = budget.charged(pinned)
    now_bytes, budget_bytes = budget.room(state) - taken, state.limit_bytes - taken
    device_bytes = budget.device(state) - sum(m.anonymous_bytes for m in pinned)
    fitting = next((terms for terms in choice if terms.planned_bytes <= now_bytes), None)
    if fitting is None and not state.rules.strict:
        fitting = next(
            (
                terms
                for terms in choice
                if terms.planned_bytes <= budget_bytes and terms.planned_bytes - terms.file_bytes <= device_bytes
            ),
            None,
        )
    if fitting is not None:
        return fitting
    least = min(choice, key=lambda terms: terms.planned_bytes)
    if least.planned_bytes <= budget_bytes:
        return _short_now(state, model, least, now_bytes)
    return _no_fit(state, model, choice[0], least, pinned, ticket)


def _in_the_way(model: Model, pinned: Model) -> Fault:
    return Fault(
        "pinned",
        f"cannot load {model.name}: {pinned.name} is pinned, and one model holds memory at a time",
        fix=f"h2qctl unpin {pinned.name}",
    )


def _short_now(state: State, model: Model, least: Terms, now_bytes: int) -> Fault:
    because = ["others on this device hold memory that the budget counts on"]
    if state.foreign_bytes:
        because.append(f"{state.foreign_bytes / _GIB:.2f} GiB are with models that others loaded in a server here")
    return Fault(
        "memory_pressure",
        f"cannot load {model.name}: it needs {least.planned_bytes / _GIB:.2f} GiB, the device has "
        f"{max(0, now_bytes) / _GIB:.2f} GiB for models now",
        tuple(because),
        retry_after_s=5.0,
    )


def _no_fit(state: State, model: Model, asked: Terms, least: Terms, pinned: list[Model], ticket: Ticket) -> Fault:
    """The refusal of a load that does not fit: what it takes, what is in its way, what would help."""
    left = max(0, state.limit_bytes - budget.charged(pinned))
    because = [f"{m.name} ({budget.charge(m) / _GIB:.2f} GiB) is pinned" for m in pinned]
    plan = plan_of(model, asked.ctx, asked.kv_type, state.rules.slots)
    because += [f"{name}: {size / _GIB:.2f} GiB" for name, size in sorted(plan.parts, key=lambda p: -p[1])[:3]]
    if least is not asked:
        because.append(f"with {' and '.join(least.less)} it would still need {least.planned_bytes / _GIB:.2f} GiB")
    return Fault(
        "no_fit",
        f"cannot load {model.name} with a context of {asked.ctx}: it needs {asked.planned_bytes / _GIB:.2f} GiB, "
        f"models may hold {left / _GIB:.2f} GiB" + (" beside what is pinned" if pinned else " in all"),
        tuple(because),
        fix=_fix(state, model, pinned, least.planned_bytes, ticket),
    )


def _fix(state: State, model: Model, pinned: list[Model], least_bytes: int, ticket: Ticket) -> str:
    """The commands that would help: to let go one pinned model that is enough, or to ask for less."""
    left = state.limit_bytes - budget.charged(pinned)
    enough = [m for m in pinned if left + budget.charge(m) >= least_bytes]
    fixes = [f"h2qctl unpin {min(enough, key=budget.charge).name}"] if enough else []
    choice = _all_offers(model, ticket.ctx, ticket.kv_type, state.rules.slots)
    fitting = next((terms for terms in choice if terms.planned_bytes <= left), None)
    if fitting is not None:
        kv = f" --kv-type {fitting.kv_type}" if fitting.kv_type != effective_kv(model, ticket.kv_type) else ""
        fixes.append(f"h2qctl load {model.name} --ctx {fitting.ctx}{kv} ({fitting.planned_bytes / _GIB:.2f} GiB)")
    return "   or   ".join(fixes)
