"""A model's facts, as files and clients have them, turned into the shape that the core plans with."""

from h2qd.core.plan import ModelShape
from h2qd.wire.messages import ModelFacts


def shape_of(facts: ModelFacts, quantize: str = "", adapter_bytes: int = 0) -> ModelShape:
    """The part of `facts` that the memory plan needs; `quantize`: what the weights are turned into, if anything.

    `adapter_bytes` are loaded besides.
    """
    return ModelShape(
        tensor_bytes=facts.tensor_bytes,
        context_length=facts.context_length,
        layers=facts.layers,
        embedding=facts.embedding,
        feed_forward=facts.feed_forward,
        vocabulary=facts.vocabulary,
        heads=tuple(facts.heads),
        kv_heads=tuple(facts.kv_heads),
        key_length=facts.key_length,
        value_length=facts.value_length,
        sliding_window=facts.sliding_window,
        sliding=tuple(facts.sliding),
        recurrent_bytes=facts.recurrent_bytes,
        recurrent_width=facts.recurrent_width,
        merges=facts.merges,
        repacked_bytes=facts.repacked_bytes,
        format=facts.format,
        parameters=facts.parameters,
        quantize=quantize,
        adapter_bytes=adapter_bytes,
    )
