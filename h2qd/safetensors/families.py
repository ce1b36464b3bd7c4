"""The families of models that are run from folders, and what their configurations call their sizes.

A family that is not here is refused: nothing has been checked of what it would build. Called by `folder` and
`facts`.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Family:
    """`generates`: it continues text; else it turns text into vectors. The rest are keys of config.json."""

    generates: bool
    layers: str = "num_hidden_layers"
    embedding: str = "hidden_size"
    heads: str = "num_attention_heads"
    feed_forward: str = "intermediate_size"
    context: str = "max_position_embeddings"
    ignored: tuple[str, ...] = field(default=())
    """Beginnings of names of tensors that are there for training, or for other tasks."""
    positions_kept: int = 0
    """Positions of the table that no token can have."""
    attention: str = "sdpa"
    """How attention is computed: eager where the library has no other way for this family."""
    pooler: bool = False
    """The library would build a pooler for another task, unless told not to."""


_HEADS = (
    "cls.",
    "lm_head.",
    "classifier.",
    "qa_outputs.",
    "vocab_projector.",
    "vocab_transform.",
    "vocab_layer_norm.",
)
_CAUSAL = Family(generates=True)
_BERT = Family(generates=False, ignored=(*_HEADS, "pooler."), pooler=True)
_ROBERTA = Family(generates=False, ignored=(*_HEADS, "pooler."), positions_kept=2, pooler=True)

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(
        (
            "gemma",
            "gemma3_text",
            "granite",
            "llama",
            "mistral",
            "olmo2",
            "phi",
            "phi3",
            "qwen2",
            "qwen3",
            "smollm3",
            "stablelm",
            "starcoder2",
        ),
        _CAUSAL,
    ),
    "gemma2": Family(generates=True, attention="eager"),
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "mpnet": Family(generates=False, ignored=(*_HEADS, "pooler."), positions_kept=2, attention="eager", pooler=True),
    "distilbert": Family(
        generates=False,
        layers="n_layers",
        embedding="dim",
        heads="n_heads",
        feed_forward="hidden_dim",
        ignored=_HEADS,
    ),
}
"""By `model_type`."""
