"""Draft models: small models that guess what a larger one will say, which then checks many guesses in one pass.

A model's traits name its draft; here is who that is now, whether it can be, and what it takes beside the model. How
well the two agree, and whether guessing pays, is found out by the engine that runs both. Called by `machine` when
models come and go, and by `offers`. Pure. Invariant: a draft with a shape has the vocabulary size of its model.
"""

from collections.abc import Mapping
from dataclasses import replace

from h2qd.core.plan import PROCESS_BYTES, MemoryPlan, ModelShape, memory_plan
from h2qd.core.records import Draft, Model

DRAFT_CTX_MAX = 1024
"""What was said last is what tells how it goes on: a draft need not remember all of a long text."""

DRAFT_BATCH = 64
"""Tokens that it catches up with at once, between two tokens of the stream: a full block of the CPU's kernels."""


def resolved(models: Mapping[str, Model]) -> Mapping[str, Model]:
    """`models`, each with its draft as it is now."""
    return {name: _with_draft(model, models) for name, model in models.items()}


def draft_ctx(draft: ModelShape, ctx: int) -> int:
    """The context that a draft has beside a model with `ctx` tokens for each slot."""
    return min(ctx, DRAFT_CTX_MAX, draft.context_length or DRAFT_CTX_MAX)


def draft_plan(draft: ModelShape, ctx: int) -> MemoryPlan:
    """What a draft takes in the process of a model with `ctx` tokens for each slot; it needs one token's logits."""
    plan = memory_plan(draft, draft_ctx(draft, ctx), batch=DRAFT_BATCH, rows=1)
    parts = tuple((name, size - PROCESS_BYTES if name == "overhead" else size) for name, size in plan.parts)
    return MemoryPlan(plan.ctx, parts, plan.total_bytes - PROCESS_BYTES)


def _with_draft(model: Model, models: Mapping[str, Model]) -> Model:
    draft = _draft_of(model, models) if model.traits.draft else None
    return model if draft == model.draft else replace(model, draft=draft)


def _draft_of(model: Model, models: Mapping[str, Model]) -> Draft:
    name = model.traits.draft
    known = models.get(name)
    why = "it is not registered" if known is None else _unfit(model.shape, known.shape)
    return Draft(name, known.shape) if known is not None and not why else Draft(name, why=why)


def _unfit(model: ModelShape, draft: ModelShape) -> str:
    """Why one cannot be the draft of the other; empty: as far as can be told from here, it can."""
    if model.format != "gguf" or draft.format != "gguf":
        return "both must be GGUF models"
    if model.vocabulary != draft.vocabulary:
        return f"its vocabulary has {draft.vocabulary} tokens, that of the model {model.vocabulary}"
    if model.recurrent_bytes or draft.recurrent_bytes:
        return "a recurrent model cannot take guesses back"
    return ""
