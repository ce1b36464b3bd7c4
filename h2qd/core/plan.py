"""The memory plan: what a load will take, told from the model's shape before anything is loaded.

It follows how llama.cpp lays memory out on a CPU (the sources are named beside each formula) and tells by how much
the zygote and its worker together will have grown, measured as PSS, once every slot's context is full. Memory that a
context reserves and only touches when it fills counts from the beginning. It does not know the machine; the caller
compares the plan with what there is. Called by admission and by `model.plan`.
Invariants: total for every shape, also absurd ones; no part is negative; the parts add up to the total.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

_Item = TypeVar("_Item")

KV_TYPES: dict[str, float] = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
"""Bytes of a cached element by what the KV cache is made of: blocks of 32 elements share a scale of two bytes."""

_CELLS_STEP = 256
"""llama.cpp rounds contexts and sliding caches up to this many cells (llama-context.cpp, llama-kv-cache-iswa.cpp)."""

_MASK_BYTES = 2
"""A cell of the attention mask, f16 under flash attention, which CPUs run by default."""

_FLOAT_BYTES = 4
"""Activations, logits and recurrent states are f32."""

_LAYERS_MAX = 1024
"""No shape, however absurd, makes the plan slow or endless."""

PROCESS_BYTES = 9 * 2**20
"""What a forked worker writes to that it shared with the zygote, and what the engine and its libraries allocate for
any model: heap, thread stacks, the registry of backends. The zygote itself is in no plan: it is always there."""

_LAYER_BYTES = 200 * 2**10
"""Tensors and graphs as the engine keeps them: some 12 tensors a layer, 8 graph nodes a tensor (graph_max_nodes), a
description of 368 bytes each, in three graphs, and the scheduler's tables on top."""

_TOKEN_BYTES = 176
"""What the engine keeps per vocabulary entry: text, score, the hash from text to token, the sampler's candidates.
Measured with 262,144 entries of the llama tokenizer and 151,936 of a byte-pair tokenizer."""

_MERGE_BYTES = 117
"""What it keeps per merge of a byte-pair tokenizer: both texts and their rank, in a tree."""

_CELL_BYTES = 150
"""What it keeps per cell of a KV cache beside the cell: position, shift, a bit for each of 256 sequences, and two
nodes in ordered sets for a cell in use (llama-kv-cells.h)."""

_POSITION_BYTES = 80
"""A token of a prompt as the worker's Python has it: in the request, and in the record of what the cache holds."""

_OPERAND_BITS = 9
"""An activation as operand of a product with quantized weights, in blocks of 8 bits: the CPU backend keeps a buffer
for the widest such operand (ggml-cpu.c, ggml_graph_plan)."""


_PIECE_TOKENS = 64
_BATCH_TOKENS_MAX = 256
_OUTPUTS_MIN = 8


def batch_tokens(slots: int) -> int:
    """How many tokens the engine computes at once: larger pieces gain nothing on a CPU, and cost buffers."""
    return min(_BATCH_TOKENS_MAX, _PIECE_TOKENS * max(2, slots))


def outputs(slots: int) -> int:
    """Of how many of them it has the logits: one a slot; scoring and speculation use what is left."""
    return max(_OUTPUTS_MIN, slots)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the plan needs of a model; sizes in bytes, lengths in elements, contexts in tokens.

    `heads`, `kv_heads` and `sliding` have an entry per layer, or one for all; `kv_heads` is 0 for a layer without
    attention. `sliding_window` bounds the layers marked in `sliding`. `feed_forward` is the width that a token has
    there at once (all the experts it uses). `recurrent_bytes` is the state of one sequence, `recurrent_width` what a
    recurrent layer works on of a token. `merges` are the tokenizer's rules. `repacked_bytes` is what the tensors take
    that the engine copies into a layout of its own on this device, less what of the file need not stay mapped then.
    `adapter_bytes` are those of all adapters that are loaded with it.
    `format` says whose layout counts: safetensors is for `torch_plan`, which also asks for `parameters` and for what
    the engine turns them into (`quantize`; empty: nothing).
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
    recurrent_width: int = 0
    merges: int = 0
    repacked_bytes: int = 0
    format: str = "gguf"
    parameters: int = 0
    quantize: str = ""
    adapter_bytes: int = 0


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
    kv_type: str = "f16",
    batch: int = 0,
    rows: int = 0,
) -> MemoryPlan:
    """The memory that a load of `shape` takes once its context is full.

    `ctx` tokens are shared by `slots` sequences, each with cells of its own; the engine computes `batch` of them
    at once (0: `batch_tokens`), never more than the context holds, and the logits of `rows` of them (0: `outputs`).
    Raises KeyError when `kv_type` is none of `KV_TYPES`.
    """
    element_bytes = KV_TYPES[kv_type]
    slots = max(1, slots)
    full_cells = _padded(_padded(ctx) // slots)
    tokens = max(1, min(batch if batch > 0 else batch_tokens(slots), ctx))
    # The sliding cache holds the window and the batch under way (llama-kv-cache-iswa.cpp, swa_full false).
    sliding_cells = _padded(min(full_cells, _positive(shape.sliding_window) + tokens))
    attending = {_slides(shape, layer) for layer in _layers(shape) if _of_layer(shape.kv_heads, layer, 0) > 0}
    cells = sum(sliding_cells if slides else full_cells for slides in attending)
    logits = _positive(shape.vocabulary) * (rows if rows > 0 else outputs(slots)) * _FLOAT_BYTES
    overhead = (
        PROCESS_BYTES
        + len(_layers(shape)) * _LAYER_BYTES
        + _positive(shape.vocabulary) * _TOKEN_BYTES
        + _positive(shape.merges) * _MERGE_BYTES
        + slots * cells * _CELL_BYTES
        + slots * full_cells * _POSITION_BYTES
        + tokens * _widest(shape) * _OPERAND_BITS // 8
    )
    parts = (
        ("weights", _positive(shape.tensor_bytes)),
        ("repacked", _positive(shape.repacked_bytes)),
        ("kv_cache", int(slots * _cached_elements(shape, full_cells, sliding_cells) * element_bytes)),
        ("recurrent", slots * _positive(shape.recurrent_bytes)),
        ("compute", _compute_bytes(shape, tokens, cells, logits)),
        ("output", logits),
        ("adapters", _adapters_bytes(shape, tokens)),
        ("overhead", overhead),
    )
    return MemoryPlan(ctx, parts, sum(size for _, size in parts))


def _adapters_bytes(shape: ModelShape, tokens: int) -> int:
    """All adapters, and what one of them adds to the widest product of a pass that uses it (llama-graph.cpp)."""
    if shape.adapter_bytes <= 0:
        return 0
    return shape.adapter_bytes + tokens * _widest(shape) * _FLOAT_BYTES


def _cached_elements(shape: ModelShape, full_cells: int, sliding_cells: int) -> int:
    """Elements that one sequence caches: `kv_heads` keys and values a cell and layer (llama-kv-cache.cpp)."""
    heads_in_cells = sum(
        _positive(_of_layer(shape.kv_heads, layer, 0)) * (sliding_cells if _slides(shape, layer) else full_cells)
        for layer in _layers(shape)
    )
    return heads_in_cells * (_positive(shape.key_length) + _positive(shape.value_length))


def _compute_bytes(shape: ModelShape, tokens: int, cells: int, logits: int) -> int:
    """What is alive at once, at the widest point of a layer or at the end; the allocator reuses the rest.

    Beside the activations of a layer there are the attention masks, a cell for each token of the batch and each cell
    of a cache, one mask a kind of cache (llama-graph.cpp, build_attn_inp_kq_mask). At the end there are only the
    residual stream and the logits.

    Fitted to the engine's reserved buffers for shapes of the llama, qwen2, qwen3, gemma2, gemma3, phi3, mamba and
    lfm2 families and for mixtures of experts: equal, or up to 40 % over where the feed-forward layer is no wider than
    the embedding.
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
    # A recurrent layer's input and gate, its convolution, time steps and output, beside the residual stream
    # (mamba-base.cpp); next to a short convolution, the feed-forward part is wider.
    recurrent = 6 * _positive(shape.recurrent_width) + embedding
    layer = tokens * max(feed_forward, attention + 3 * embedding, recurrent) * _FLOAT_BYTES
    return max(layer + tokens * cells * _MASK_BYTES, logits + tokens * embedding * _FLOAT_BYTES)


def _widest(shape: ModelShape) -> int:
    """The most elements of one token that are multiplied with a matrix."""
    queries = max((_positive(_of_layer(shape.heads, layer, 0)) for layer in _layers(shape)), default=0)
    widths = (shape.embedding, shape.feed_forward, shape.recurrent_width, queries * _positive(shape.key_length))
    return max(_positive(width) for width in widths)


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
