"""Tiny models of several architectures, written as real GGUF files that llama.cpp loads and runs.

Weights are random bytes in valid blocks, so a model says nothing, but takes the memory that one of its shape takes:
a few layers, as wide as those of small real models. For tests and benches of the memory plan. A file is a function of
its name alone.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

_Shape: TypeAlias = tuple[int, ...]
_Tensors: TypeAlias = Iterator[tuple[str, _Shape]]
"""Names and shapes, rows first as in numpy; vectors are stored as f32, matrices in the model's type."""

_SCALE = np.frombuffer(np.float16(1e-4).tobytes(), np.uint8)
_SCALE_BYTES = {Type.Q4_0: 2, Type.Q8_0: 2, Type.Q4_K: 4}
"""So many bytes at the beginning of a block are scales, which must be finite and small; the rest may be anything."""

_BYTE_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Tiny:
    """One model: `keys` are its architecture's metadata, `matrices` the type of its matrices."""

    architecture: str
    matrices: Type
    vocabulary: int
    embedding: int
    layers: int
    keys: dict[str, int | float | list[int]]
    tensors: Callable[["Tiny"], _Tensors]
    merges: bool = False
    tied: bool = True
    context: int = 131_072

    def number(self, key: str) -> int:
        """A whole number of `keys`."""
        value = self.keys[key]
        assert isinstance(value, int)
        return value


def write(name: str, folder: Path) -> Path:
    """The file of the model `name` of `MODELS`, in `folder`."""
    return write_model(MODELS[name], folder / f"{name}.gguf")


def write_model(tiny: Tiny, path: Path) -> Path:
    """The file of `tiny`, at `path`."""
    writer = gguf.GGUFWriter(path, tiny.architecture)
    writer.add_name(f"tiny {tiny.architecture}")
    writer.add_block_count(tiny.layers)
    writer.add_embedding_length(tiny.embedding)
    writer.add_context_length(tiny.context)
    for key, value in tiny.keys.items():
        _add(writer, f"{tiny.architecture}.{key}", value)
    if tiny.architecture == "bert":
        _add_word_vocabulary(writer, tiny.vocabulary)
    else:
        (_add_merging_vocabulary if tiny.merges else _add_scored_vocabulary)(writer, tiny.vocabulary)
    numbers = np.random.default_rng(tiny.embedding)
    for tensor, shape in _all_tensors(tiny):
        # What a convolution or a state is computed with has to be f32 in the engine, whatever the rest is.
        plain = len(shape) == 1 or "conv" in tensor or tensor.endswith(("ssm_a", "ssm_d")) or "gate_inp" in tensor
        data, kind = _weights(numbers, shape, Type.F32 if plain else tiny.matrices)
        if tensor.endswith("ssm_a"):
            data = -np.abs(data)  # a state decays, or no number stays finite
        writer.add_tensor(tensor, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: float | list[int]) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    else:
        writer.add_float32(key, value)


def _add_scored_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """As SentencePiece has it: special tokens, bytes, words with scores."""
    special = ["<unk>", "<s>", "</s>", "<|endoftext|>"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(_BYTE_TOKENS))]
    tokens += _words(size - len(tokens), "\u2581")
    kinds = [2, 3, 3, 3, *[6] * _BYTE_TOKENS]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(size)])
    writer.add_token_types(kinds + [1] * (size - len(kinds)))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _add_merging_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """As byte-pair encoding has it: a merge for nearly every token."""
    words = _words(size - 1, "\u0120")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(["<|endoftext|>", *words])
    writer.add_token_types([3] + [1] * len(words))
    writer.add_token_merges([f"{word[:-2]} {word[-2:]}" for word in words])
    writer.add_eos_token_id(0)


def _add_word_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """As WordPiece has it: words begin with a blank, what goes on inside of one does not. Letters make any word."""
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
    tokens = [special.get(index, f"[unused{index}]") for index in range(104)]
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens += [*letters, *(f"\u2581{letter}" for letter in letters)]
    tokens += _words(size - len(tokens), "\u2581")
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens[:size])
    writer.add_token_types(([3] * 104 + [1] * len(tokens))[:size])
    writer.add_token_type_count(2)


def _words(count: int, blank: str) -> list[str]:
    letters = random.Random(1)
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    words: dict[str, None] = {}
    while len(words) < count:
        words[blank + "".join(letters.choices(alphabet, k=letters.randint(3, 9)))] = None
    return list(words)


def _weights(numbers: np.random.Generator, shape: _Shape, kind: Type) -> tuple[NDArray[np.number[Any]], Type]:
    """Random weights of `kind`: small, finite, and made fast."""
    if kind in {Type.F32, Type.F16}:
        some = numbers.standard_normal(min(int(np.prod(shape)), 2**16)) * 0.02
        return np.resize(some, shape).astype(np.float32 if kind == Type.F32 else np.float16), kind
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = numbers.integers(0, 256, (2**12, size), dtype=np.uint8)
    blocks[:, : _SCALE_BYTES[kind]] = np.resize(_SCALE, _SCALE_BYTES[kind])
    return np.resize(blocks, (*shape[:-1], shape[-1] // elements * size)), kind


# --- the shapes of their tensors ----------------------------------------------------------------------


def _all_tensors(tiny: Tiny) -> _Tensors:
    yield "token_embd.weight", (tiny.vocabulary, tiny.embedding)
    yield from tiny.tensors(tiny)
    if not tiny.tied:
        yield "output.weight", (tiny.vocabulary, tiny.embedding)


def _attention(tiny: Tiny, layer: int, kv_heads: int, *, bias: bool = False, norms: bool = False) -> _Tensors:
    heads = tiny.number("attention.head_count")
    length = tiny.keys.get("attention.key_length", tiny.embedding // heads)
    assert isinstance(length, int)
    queries, keys = heads * length, kv_heads * length
    for name, width in (("q", queries), ("k", keys), ("v", keys)):
        yield f"blk.{layer}.attn_{name}.weight", (width, tiny.embedding)
        if bias:
            yield f"blk.{layer}.attn_{name}.bias", (width,)
    yield f"blk.{layer}.attn_output.weight", (tiny.embedding, queries)
    if norms:
        yield f"blk.{layer}.attn_q_norm.weight", (length,)
        yield f"blk.{layer}.attn_k_norm.weight", (length,)


def _feed_forward(tiny: Tiny, layer: int) -> _Tensors:
    width = tiny.number("feed_forward_length")
    yield f"blk.{layer}.ffn_norm.weight", (tiny.embedding,)
    yield f"blk.{layer}.ffn_gate.weight", (width, tiny.embedding)
    yield f"blk.{layer}.ffn_up.weight", (width, tiny.embedding)
    yield f"blk.{layer}.ffn_down.weight", (tiny.embedding, width)


def _dense(tiny: Tiny, *, bias: bool = False, norms: bool = False) -> _Tensors:
    """Attention and a gated feed-forward layer, as in llama and most of what followed."""
    yield "output_norm.weight", (tiny.embedding,)
    for layer in range(tiny.layers):
        yield f"blk.{layer}.attn_norm.weight", (tiny.embedding,)
        yield from _attention(tiny, layer, tiny.number("attention.head_count_kv"), bias=bias, norms=norms)
        yield from _feed_forward(tiny, layer)


def _gemma(tiny: Tiny) -> _Tensors:
    yield from _dense(tiny, norms=True)
    for layer in range(tiny.layers):
        yield f"blk.{layer}.post_attention_norm.weight", (tiny.embedding,)
        yield f"blk.{layer}.post_ffw_norm.weight", (tiny.embedding,)


def _phi(tiny: Tiny) -> _Tensors:
    """Queries, keys and values in one matrix, gate and up in one as well."""
    yield "output_norm.weight", (tiny.embedding,)
    length = tiny.embedding // tiny.number("attention.head_count")
    width = tiny.number("feed_forward_length")
    for layer in range(tiny.layers):
        yield f"blk.{layer}.attn_norm.weight", (tiny.embedding,)
        rows = tiny.embedding + 2 * length * tiny.number("attention.head_count_kv")
        yield f"blk.{layer}.attn_qkv.weight", (rows, tiny.embedding)
        yield f"blk.{layer}.attn_output.weight", (tiny.embedding, tiny.embedding)
        yield f"blk.{layer}.ffn_norm.weight", (tiny.embedding,)
        yield f"blk.{layer}.ffn_up.weight", (2 * width, tiny.embedding)
        yield f"blk.{layer}.ffn_down.weight", (tiny.embedding, width)


def _experts(tiny: Tiny) -> _Tensors:
    yield "output_norm.weight", (tiny.embedding,)
    count, width = tiny.number("expert_count"), tiny.number("feed_forward_length")
    for layer in range(tiny.layers):
        yield f"blk.{layer}.attn_norm.weight", (tiny.embedding,)
        yield from _attention(tiny, layer, tiny.number("attention.head_count_kv"))
        yield f"blk.{layer}.ffn_norm.weight", (tiny.embedding,)
        yield f"blk.{layer}.ffn_gate_inp.weight", (count, tiny.embedding)
        yield f"blk.{layer}.ffn_gate_exps.weight", (count, width, tiny.embedding)
        yield f"blk.{layer}.ffn_up_exps.weight", (count, width, tiny.embedding)
        yield f"blk.{layer}.ffn_down_exps.weight", (count, tiny.embedding, width)


def _mamba(tiny: Tiny) -> _Tensors:
    yield "output_norm.weight", (tiny.embedding,)
    inner, state = tiny.number("ssm.inner_size"), tiny.number("ssm.state_size")
    rank, kernel = tiny.number("ssm.time_step_rank"), tiny.number("ssm.conv_kernel")
    for layer in range(tiny.layers):
        yield f"blk.{layer}.attn_norm.weight", (tiny.embedding,)
        yield f"blk.{layer}.ssm_in.weight", (2 * inner, tiny.embedding)
        yield f"blk.{layer}.ssm_conv1d.weight", (inner, kernel)
        yield f"blk.{layer}.ssm_conv1d.bias", (inner,)
        yield f"blk.{layer}.ssm_x.weight", (rank + 2 * state, inner)
        yield f"blk.{layer}.ssm_dt.weight", (inner, rank)
        yield f"blk.{layer}.ssm_dt.bias", (inner,)
        yield f"blk.{layer}.ssm_a", (inner, state)
        yield f"blk.{layer}.ssm_d", (inner,)
        yield f"blk.{layer}.ssm_out.weight", (tiny.embedding, inner)


def _lfm(tiny: Tiny) -> _Tensors:
    """Short convolutions, and attention where there are heads for keys."""
    yield "token_embd_norm.weight", (tiny.embedding,)
    kv_heads = tiny.keys["attention.head_count_kv"]
    assert isinstance(kv_heads, list)
    for layer, heads in enumerate(kv_heads):
        yield f"blk.{layer}.attn_norm.weight", (tiny.embedding,)
        yield from _feed_forward(tiny, layer)
        if heads:
            yield from _attention(tiny, layer, heads, norms=True)
        else:
            yield f"blk.{layer}.shortconv.conv.weight", (tiny.embedding, tiny.number("shortconv.l_cache"))
            yield f"blk.{layer}.shortconv.in_proj.weight", (3 * tiny.embedding, tiny.embedding)
            yield f"blk.{layer}.shortconv.out_proj.weight", (tiny.embedding, tiny.embedding)


def _bert(tiny: Tiny) -> _Tensors:
    """Positions are learned, attention goes both ways, and norms come last and have biases."""
    width = tiny.number("feed_forward_length")
    yield "token_types.weight", (2, tiny.embedding)
    yield "position_embd.weight", (tiny.context, tiny.embedding)
    yield from _norm("token_embd_norm", tiny)
    for layer in range(tiny.layers):
        block = f"blk.{layer}"
        for name in ("q", "k", "v", "output"):
            yield f"{block}.attn_{name}.weight", (tiny.embedding, tiny.embedding)
            yield f"{block}.attn_{name}.bias", (tiny.embedding,)
        yield from _norm(f"{block}.attn_output_norm", tiny)
        yield f"{block}.ffn_up.weight", (width, tiny.embedding)
        yield f"{block}.ffn_up.bias", (width,)
        yield f"{block}.ffn_down.weight", (tiny.embedding, width)
        yield f"{block}.ffn_down.bias", (tiny.embedding,)
        yield from _norm(f"{block}.layer_output_norm", tiny)


def _norm(name: str, tiny: Tiny) -> _Tensors:
    yield f"{name}.weight", (tiny.embedding,)
    yield f"{name}.bias", (tiny.embedding,)


_EPSILON: dict[str, int | float | list[int]] = {"attention.layer_norm_rms_epsilon": 1e-6}

MODELS: dict[str, Tiny] = {
    "llama": Tiny(
        "llama",
        Type.Q8_0,
        4000,
        1024,
        6,
        {
            **_EPSILON,
            "attention.head_count": 16,
            "attention.head_count_kv": 4,
            "feed_forward_length": 2816,
            "rope.dimension_count": 64,
        },
        _dense,
        tied=False,
    ),
    "qwen2": Tiny(
        "qwen2",
        Type.Q4_0,
        151_936,
        896,
        5,
        {**_EPSILON, "attention.head_count": 14, "attention.head_count_kv": 2, "feed_forward_length": 4864},
        lambda tiny: _dense(tiny, bias=True),
        merges=True,
    ),
    "qwen3": Tiny(
        "qwen3",
        Type.Q4_K,
        8000,
        1024,
        8,
        {
            **_EPSILON,
            "attention.head_count": 16,
            "attention.head_count_kv": 8,
            "attention.key_length": 128,
            "attention.value_length": 128,
            "feed_forward_length": 3072,
        },
        lambda tiny: _dense(tiny, norms=True),
        merges=True,
    ),
    "gemma3": Tiny(
        "gemma3",
        Type.F16,
        6000,
        768,
        6,
        {
            **_EPSILON,
            "attention.head_count": 4,
            "attention.head_count_kv": 1,
            "attention.key_length": 256,
            "attention.value_length": 256,
            "attention.sliding_window": 1024,
            "feed_forward_length": 3072,
        },
        _gemma,
    ),
    "phi3": Tiny(
        "phi3",
        Type.Q8_0,
        4000,
        1536,
        3,
        {
            **_EPSILON,
            "attention.head_count": 16,
            "attention.head_count_kv": 16,
            "feed_forward_length": 4096,
            "rope.dimension_count": 96,
            "rope.scaling.original_context_length": 131_072,
        },
        _phi,
        tied=False,
    ),
    "experts": Tiny(
        "llama",
        Type.Q4_0,
        4000,
        1024,
        3,
        {
            **_EPSILON,
            "attention.head_count": 16,
            "attention.head_count_kv": 8,
            "feed_forward_length": 1408,
            "rope.dimension_count": 64,
            "expert_count": 8,
            "expert_used_count": 2,
        },
        _experts,
    ),
    "mamba": Tiny(
        "mamba",
        Type.Q8_0,
        4000,
        1024,
        8,
        {
            **_EPSILON,
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 2048,
            "ssm.state_size": 16,
            "ssm.time_step_rank": 64,
            "attention.head_count": 0,
            "feed_forward_length": 0,
        },
        _mamba,
    ),
    "lfm2": Tiny(
        "lfm2",
        Type.Q8_0,
        4000,
        1024,
        6,
        {
            **_EPSILON,
            "attention.head_count": 16,
            "attention.head_count_kv": [0, 0, 8, 0, 0, 8],
            "feed_forward_length": 2560,
            "shortconv.l_cache": 3,
        },
        _lfm,
    ),
}
"""By name. Between 30 and 120 MB each."""

LLAMA_F32 = Tiny(
    "llama",
    Type.F32,
    600,
    128,
    2,
    {
        **_EPSILON,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "feed_forward_length": 256,
        "rope.dimension_count": 32,
    },
    _dense,
    tied=False,
)
"""For comparisons: batches of other shapes round its numbers hardly differently."""

BERT = Tiny(
    "bert",
    Type.F32,
    400,
    64,
    2,
    {
        "attention.layer_norm_epsilon": 1e-6,
        "attention.head_count": 4,
        "attention.causal": False,
        "pooling_type": 1,
        "feed_forward_length": 128,
    },
    _bert,
    context=512,
)
"""It generates nothing: it was made for vectors, the mean of what it says of a text's tokens."""
