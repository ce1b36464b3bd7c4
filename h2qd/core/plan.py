"""The memory plan: what a load will take, told from the model's shape before anything is loaded.

It follows how llama.cpp lays memory out on a CPU (the sources are named beside each formula) and leans to too much
rather than too little: buffers count in full, though the kernel hands their pages out only as they are touched. It
does not know the machine; the caller compares the plan with what there is. Called by admission and by `model.plan`.
Invariants: total for every shape, also absurd ones; no part is negative; the parts add up to the total.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

_Item = TypeVar("_Item")

_CELLS_STEP = 256
"""llama.cpp rounds contexts and sliding caches up to this many cells (llama-context.cpp, llama-kv-cache-iswa.cpp)."""

_MASK_BYTES = 2
"""A cell of the attention mask, f16 under flash attention, which CPUs run by default."""

_FLOAT_BYTES = 4
"""Activations, logits and recurrent states are f32."""

_ELEMENT_BYTES_MAX = 8.0
_LAYERS_MAX = 1024
"""No shape, however absurd, makes the plan slow or endless."""

_PROCESS_BYTES = 46 * 2**20
"""A worker with its imports done (39 MiB: interpreter, numpy, the engine's libraries), and what the engine adds to it
for a model: graph, thread stacks and work buffers (about 6 MiB). Measured as PSS."""

_TOKEN_BYTES = 176
"""What the engine keeps per vocabulary entry: text, score, and the hash from text to token. Measured with 262,144
entries of the llama tokenizer. Merges, where a tokenizer has them, cost some 117 bytes each on top (30 MiB for the
largest vocabularies), which no shape tells: the calibration of later loads sees them."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the plan needs of a model; sizes in bytes, lengths in elements, contexts in tokens.

    `heads`, `kv_heads` and `sliding` have an entry per layer, or one for all; `kv_heads` is 0 for a layer without
    attention. `sliding_window` bounds the layers marked in `sliding`. `feed_forward` is the width that a token has
    there at once (all the experts it uses). `recurrent_bytes` is the state of one sequence. `repacked_bytes` are the
    tensors that the engine copies into a layout of its own on this device.
    """

    tensor_bytes: int = 0
    context_length: int = 0
    layers: int = 0
    embedding: int = 0
    feed_forward: int = 0
    vocabulary: int = 0
    heads: tuple[int, ...] = ()
    kv_heads: tuple[int, ...] = ()
    key_length: int = 0
    value_length: int = 0
    sliding_window: int = 0
    sliding: tuple[bool, ...] = ()
    recurrent_bytes: int = 0
    repacked_bytes: int = 0


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a load takes: named parts in bytes, and their sum. `ctx` is what was asked for, in tokens."""

    ctx: int
    parts: tuple[tuple[str, int], ...]
    total_bytes: int


def memory_plan(
    shape: ModelShape,
    ctx: int,
    slots: int = 1,
    batch: int = 512,
    ubatch: int = 512,
    kv_bytes: float = 2.0,
) -> MemoryPlan:
    """The memory that a load of `shape` takes once its context is full.

    `ctx` tokens are shared by `slots` sequences; the engine computes `ubatch` tokens at once, never more than `batch`
    or a sequence holds; `kv_bytes` is the size of a cached element (2: f16, 34/32: q8_0).
    """
    slots = max(1, slots)
    full_cells = _padded(_padded(ctx) // slots)
    tokens = max(1, min(ubatch, batch, full_cells * slots))
    # The sliding cache holds the window and the batch under way (llama-kv-cache-iswa.cpp, swa_full false).
    sliding_cells = _padded(min(full_cells, max(0, shape.sliding_window) + tokens))
    outputs = _positive(shape.vocabulary) * slots * _FLOAT_BYTES
    parts = (
        ("weights", _positive(shape.tensor_bytes)),
        ("repacked", _positive(shape.repacked_bytes)),
        ("kv_cache", slots * _kv_cache_bytes(shape, full_cells, sliding_cells, kv_bytes)),
        ("recurrent", slots * _positive(shape.recurrent_bytes)),
        ("compute", _compute_bytes(shape, tokens, outputs) + _mask_bytes(shape, tokens, full_cells, sliding_cells)),
        ("output", outputs),
        ("overhead", _PROCESS_BYTES + _positive(shape.vocabulary) * _TOKEN_BYTES),
    )
    return MemoryPlan(ctx, parts, sum(size for _, size in parts))


def _kv_cache_bytes(shape: ModelShape, full_cells: int, sliding_cells: int, kv_bytes: float) -> int:
    """Keys and values of one sequence: a row of `kv_heads` heads a cell and layer (llama-kv-cache.cpp)."""
    heads_in_cells = sum(
        _positive(_of_layer(shape.kv_heads, layer, 0)) * (sliding_cells if _slides(shape, layer) else full_cells)
        for layer in _layers(shape)
    )
    row = _positive(shape.key_length) + _positive(shape.value_length)
    return int(heads_in_cells * row * min(max(0.0, kv_bytes), _ELEMENT_BYTES_MAX))


def _mask_bytes(shape: ModelShape, tokens: int, full_cells: int, sliding_cells: int) -> int:
    """The attention masks: a cell for each token of the batch and each cell of a cache, one mask a kind of cache.

    This is the part of the compute buffer that grows with the context (llama-graph.cpp, build_attn_inp_kq_mask).
    """
    attending = {_slides(shape, layer) for layer in _layers(shape) if _of_layer(shape.kv_heads, layer, 0) > 0}
    cells = sum(sliding_cells if slides else full_cells for slides in attending)
    return tokens * cells * _MASK_BYTES


def _compute_bytes(shape: ModelShape, tokens: int, outputs: int) -> int:
    """The activations that are alive at once, at the widest point of a layer; the allocator reuses the rest.

    Fitted to the engine's reserved buffers for shapes of the llama, qwen2, gemma2 and gemma3 families and for
    mixtures of experts: equal, or up to 40 % over where the feed-forward layer is no wider than the embedding.
    """
    embedding = _positive(shape.embedding)
    # Gate, up and their product, beside the residual stream, its norm and what fragmentation leaves unused.
    feed_forward = 3 * _positive(shape.feed_forward) + 4 * embedding
    # Queries (before and after their rotation), keys and values, beside the residual stream.
    attention = max(
        (
            3 * _positive(_of_layer(shape.heads, layer, 0)) * _positive(shape.key_length) // 2
            + 2 * _positive(_of_layer(shape.kv_heads, layer, 0)) * _positive(shape.key_length)
            for layer in _layers(shape)
        ),
        default=0,
    )
    return max(tokens * max(feed_forward, attention + 3 * embedding) * _FLOAT_BYTES, outputs)


def _slides(shape: ModelShape, layer: int) -> bool:
    return shape.sliding_window > 0 and _of_layer(shape.sliding, layer, default=False)


def _layers(shape: ModelShape) -> range:
    return range(min(_positive(shape.layers), _LAYERS_MAX))


def _of_layer(values: Sequence[_Item], layer: int, default: _Item) -> _Item:
    """The layer's own value, the one for all layers, or `default` where the list ends early."""
    if len(values) == 1:
        return values[0]
    return values[layer] if layer < len(values) else default


def _padded(cells: int) -> int:
    return max(1, -(-cells // _CELLS_STEP)) * _CELLS_STEP


def _positive(value: int) -> int:
    return max(0, value)
