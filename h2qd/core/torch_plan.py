"""The memory plan of a model folder that PyTorch runs: its parts, as `plan` has them for llama.cpp.

It tells by how much the zygote and its worker together will have grown, measured as PSS, once every slot's context is
full. The libraries are loaded by the worker alone, so they are in the plan. Pure; called by `offers`.
Invariants: total for every shape, also absurd ones; no part is negative; the parts add up to the total.
"""

from h2qd.core.plan import MemoryPlan, ModelShape

_LIBRARIES_BYTES = 320 * 2**20
"""PyTorch and transformers, imported: heap, and the pages of their files that are touched."""

_TOKEN_BYTES = 430
"""What the tokenizer keeps per entry of its vocabulary."""

_GRAMMAR_TOKEN_BYTES = 150
"""What llguidance keeps per entry, from the first grammar or JSON schema on: the vocabulary as a tree. Measured: 164
for 32,000 entries, 139 for 128,000, 132 for 256,000; while it is made, as much again, which is left to the margin
that a worker has."""

_LAYER_BYTES = 2**20
"""Modules as Python objects, and what the kernels of a layer keep."""

_PIECE_TOKENS = 128
_BATCH_TOKENS = 512
"""What is computed at once: a piece of one prompt, or texts that become vectors, padded."""

_LOGIT_BYTES = 32
"""What choosing a token takes per entry of the vocabulary: logits, and copies that are sorted."""

_ROW_BYTES = 8
"""What each further slot's row of logits takes per entry while a pass serves all: as computed, and as float32."""

_FLOAT_BYTES = 4

_QUANTIZED_BITS = {"int8": 8.0, "int4": 5.0}
"""Bits of a weight with its share of scales and zeros; in 4 bits, 32 weights share two numbers of 16."""

_WIDTH_BYTES = {"float32": 4, "bfloat16": 2, "int8": 2, "int4": 2}
"""Bytes of what is computed in, by what was asked for."""


def torch_plan(shape: ModelShape, ctx: int, slots: int = 1) -> MemoryPlan:
    """The memory that a load of `shape` takes; `ctx` tokens are those of all its `slots` sequences together."""
    stored_bytes = 2 if shape.tensor_bytes < 3 * shape.parameters else 4
    width_bytes = _WIDTH_BYTES.get(shape.quantize, stored_bytes)
    embedded = min(max(0, shape.vocabulary) * max(0, shape.embedding), max(0, shape.parameters))
    linear = max(0, shape.parameters) - embedded
    if shape.quantize in _QUANTIZED_BITS:
        mapped, copied = 0, embedded * width_bytes + int(linear * _QUANTIZED_BITS[shape.quantize]) // 8
    elif width_bytes != stored_bytes:
        mapped, copied = 0, (embedded + linear) * width_bytes
    else:
        mapped, copied = max(0, shape.tensor_bytes), 0
    layers = max(0, shape.layers)
    heads = max(0, *shape.kv_heads, 0)
    layer_cache = heads * (max(0, shape.key_length) + max(0, shape.value_length)) * width_bytes
    tokens = min(_PIECE_TOKENS if heads else _BATCH_TOKENS, max(1, ctx))
    widest = 3 * max(0, shape.feed_forward) + 6 * max(0, shape.embedding)
    logit_bytes = _LOGIT_BYTES + _ROW_BYTES * (max(1, slots) - 1)
    token_bytes = _TOKEN_BYTES + (_GRAMMAR_TOKEN_BYTES if heads else 0)
    parts = (
        ("weights", mapped),
        ("repacked", copied),
        ("kv_cache", layers * layer_cache * max(1, ctx)),
        ("recurrent", 0),
        ("compute", tokens * widest * _FLOAT_BYTES),
        ("output", max(0, shape.vocabulary) * logit_bytes if heads else 0),
        ("adapters", 0),
        ("overhead", _LIBRARIES_BYTES + layers * _LAYER_BYTES + max(0, shape.vocabulary) * token_bytes),
    )
    return MemoryPlan(ctx, parts, sum(size for _, size in parts))
