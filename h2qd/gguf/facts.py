"""What a model file says of itself, checked: from a header to the facts that the plan and `h2qctl show` rest on.

It refuses what native code would abort on instead of refusing (sizes and counts that it asserts), and what this
program does not run (split files, adapters, projectors). Called by workers, before a file is registered or loaded.
Invariant: every number fits the wire, every list has an entry per layer, every text is safe to show.
"""

from collections import Counter
from typing import NoReturn

from h2qd.gguf.errors import GgufError
from h2qd.gguf.header import Header, Skipped
from h2qd.gguf.keys import Keys
from h2qd.gguf.layers import read_layers
from h2qd.gguf.tensor_types import FILE_TYPES
from h2qd.wire.messages import ModelFacts
from h2qd.wire.names import shown

LAYERS_MAX = 512
"""LLAMA_MAX_LAYERS: the engine aborts above it."""

EXPERTS_MAX = 1024
"""LLAMA_MAX_EXPERTS, the same."""

HEADS_MAX = 65_536
EMBEDDING_MAX = 2**20
FEED_FORWARD_MAX = 2**20
HEAD_LENGTH_MAX = 65_536
CONTEXT_MAX = 2**31 - 1
VOCABULARY_MAX = 2**23
_GUESSED = 1024
"""A flag in `general.file_type`: nobody wrote it down."""

_ROPE_SCALINGS = frozenset({"none", "linear", "yarn", "longrope"})


def facts(header: Header) -> ModelFacts:
    """The facts of a whole, runnable language model. Raises `GgufError` when it is none."""
    _check_kind(header)
    keys = Keys(header)
    if keys.architecture == "clip":
        raise GgufError("cannot run architecture clip: it is the eye of another model, not a language model")
    if not header.tensors:
        raise GgufError("cannot run a file without tensors: it holds a vocabulary only")
    count = keys.integer("block_count", 1, LAYERS_MAX)
    embedding = keys.integer("embedding_length", 1, EMBEDDING_MAX)
    heads = keys.each_layer("attention.head_count", count, HEADS_MAX, [0] * count)
    kv_heads = keys.each_layer("attention.head_count_kv", count, HEADS_MAX, heads)
    head_length = embedding // max(heads) if max(heads) else 0
    key_length = keys.integer("attention.key_length", 0, HEAD_LENGTH_MAX, head_length)
    _check_rope(keys)
    # Where sliding layers have shorter keys (gemma4), they count at full length: the plan then errs to the safe side.
    kept = read_layers(keys, count, heads, kv_heads, embedding, key_length)
    return ModelFacts(
        architecture=keys.architecture,
        title=_title(header),
        quantization=_quantization(header),
        parameters=sum(tensor.elements for tensor in header.tensors),
        file_bytes=header.file_bytes,
        tensor_bytes=sum(tensor.size_bytes for tensor in header.tensors),
        context_length=keys.integer("context_length", 1, CONTEXT_MAX),
        layers=count,
        embedding=embedding,
        feed_forward=_feed_forward(keys, count),
        vocabulary=_vocabulary(header, keys),
        heads=heads,
        kv_heads=kept.kv_heads,
        key_length=key_length,
        value_length=_value_length(keys, head_length),
        sliding_window=kept.sliding_window,
        sliding=kept.sliding,
        recurrent_bytes=kept.recurrent_bytes,
        recurrent_width=kept.recurrent_width,
        merges=_merges(header),
        chat_template=_has_text(header, "tokenizer.chat_template"),
    )


def _check_kind(header: Header) -> None:
    parts = header.values.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise GgufError(
            f"cannot use one part of a model split into {parts} files: join them first (llama-gguf-split --merge)"
        )
    kind = header.values.get("general.type", "model")
    if kind != "model":
        raise GgufError(f"cannot run a file of type {shown(str(kind), 80)}: it is not a model")


def _check_rope(keys: Keys) -> None:
    scaling = keys.value("rope.scaling.type")
    if scaling is not None and scaling not in _ROPE_SCALINGS:
        raise keys.fault("rope.scaling.type", f"it must be one of {', '.join(sorted(_ROPE_SCALINGS))}")


def _feed_forward(keys: Keys, count: int) -> int:
    """The width of the widest feed-forward layer; for a mixture, of all the experts that a token uses at once."""
    dense = max(keys.each_layer("feed_forward_length", count, FEED_FORWARD_MAX, [0] * count))
    experts = keys.integer("expert_count", 0, EXPERTS_MAX, 0)
    used = max(keys.each_layer("expert_used_count", count, EXPERTS_MAX, [0] * count))
    if used > experts or (experts and not used):
        _refuse_experts(keys, experts)
    groups = keys.integer("expert_group_count", 0, EXPERTS_MAX, 0)
    groups_used = keys.integer("expert_group_used_count", 0, EXPERTS_MAX, 0)
    if groups and (groups >= experts or (groups > 1 and (experts % groups or not 0 < groups_used < groups))):
        raise keys.fault("expert_group_count", f"{experts} experts, {groups_used} groups used, cannot be grouped so")
    expert = max(keys.each_layer("expert_feed_forward_length", count, FEED_FORWARD_MAX, [dense] * count))
    return max(dense, used * expert)


def _refuse_experts(keys: Keys, experts: int) -> NoReturn:
    raise keys.fault(
        "expert_used_count", f"the model has {experts} experts, and a token uses some of them or none is"
    )


def _value_length(keys: Keys, head_length: int) -> int:
    """Elements of a cached value: none under multi-head latent attention, where the key holds it as well."""
    latent = keys.integer("attention.key_length_mla", 0, HEAD_LENGTH_MAX, 0)
    return 0 if latent else keys.integer("attention.value_length", 0, HEAD_LENGTH_MAX, head_length)


def _vocabulary(header: Header, keys: Keys) -> int:
    """Entries of the vocabulary: as listed, or as the embedding has rows, or as a key says."""
    tokens = header.values.get("tokenizer.ggml.tokens")
    embedded = next((tensor.shape[1:] for tensor in header.tensors if tensor.name == "token_embd.weight"), ())
    if isinstance(tokens, Skipped) and tokens.kind == "string":
        entries = tokens.length
    elif embedded:
        entries = embedded[0]
    else:
        entries = keys.integer("vocab_size", 1, VOCABULARY_MAX)
    if not 1 <= entries <= VOCABULARY_MAX:
        raise GgufError(f"cannot use a vocabulary of {entries} entries: between 1 and {VOCABULARY_MAX}")
    return entries


def _merges(header: Header) -> int:
    """Rules by which a byte-pair tokenizer joins tokens: as many as tokens, or none."""
    merges = header.values.get("tokenizer.ggml.merges")
    return min(merges.length, VOCABULARY_MAX) if isinstance(merges, Skipped) and merges.kind == "string" else 0


def _quantization(header: Header) -> str:
    """What the file calls its mix of types, else the type that most of its bytes are of."""
    number = header.values.get("general.file_type")
    if isinstance(number, int) and (name := FILE_TYPES.get(number & ~_GUESSED)):
        return name
    sizes: Counter[str] = Counter()
    for tensor in header.tensors:
        sizes[tensor.type.name] += tensor.size_bytes
    return sizes.most_common(1)[0][0]


def _title(header: Header) -> str:
    for key in ("general.name", "general.basename"):
        value = header.values.get(key)
        if isinstance(value, str) and value.strip():
            return shown(value.strip())
    return ""


def _has_text(header: Header, key: str) -> bool:
    value = header.values.get(key)
    return bool(value) if isinstance(value, str) else isinstance(value, Skipped) and value.kind == "text"
