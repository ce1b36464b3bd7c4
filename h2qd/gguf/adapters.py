"""What a LoRA adapter's file must be, before native code may add it to a model: a pair of matrices for some tensors.

It refuses by name what the library would end the process on (types of keys and of tensors, shapes that do not
multiply), and what it would not do as the file means it. Called by workers, at each load. Invariant: an adapter that
passes fits each tensor that it changes: rows, columns, experts, and the rank between its two halves.
"""

import math
from collections.abc import Mapping

from h2qd.gguf.errors import GgufError
from h2qd.gguf.header import Header, Tensor
from h2qd.wire.names import shown

_TYPES = frozenset({"F32", "F16", "BF16", "Q8_0"})
"""What converters write."""

_BEFORE, _AFTER = ".lora_a", ".lora_b"
_IGNORED = "_norm.weight"
"""Whole vectors that some adapters hold besides; the library passes over them."""

_EMBEDDING = "token_embd.weight"
_ACTIVATED = "adapter.alora.invocation_tokens"


def check_adapter(adapter: Header, model: Header) -> frozenset[str]:
    """The tensors of `model` that `adapter` changes. Raises `GgufError` unless it can be used with it."""
    _word(adapter, "general.type", "adapter")
    _word(adapter, "adapter.type", "lora")
    _word(adapter, "general.architecture", model.values.get("general.architecture"))
    alpha = adapter.values.get("adapter.lora.alpha", 0.0)  # the reader takes no other kind than float32
    if not isinstance(alpha, float) or not math.isfinite(alpha):
        raise GgufError(f"cannot use adapter.lora.alpha = {shown(str(alpha), 80)}: it must be a finite number")
    if _ACTIVATED in adapter.values:
        raise GgufError("cannot use an adapter that begins to work at certain tokens (aLoRA)")
    targets = {tensor.name: tensor for tensor in model.tensors}
    halves = {tensor.name: tensor for tensor in adapter.tensors if not tensor.name.endswith(_IGNORED)}
    if not halves:
        raise GgufError("cannot use the adapter: it changes nothing")
    changed = set()
    for name, half in halves.items():
        target = name.removesuffix(_BEFORE).removesuffix(_AFTER)
        if target == name or ".lora_" in target:
            raise GgufError(f"cannot use tensor {shown(name)}: it is no half of a LoRA pair")
        if half.type.name not in _TYPES:
            raise GgufError(
                f"cannot use tensor {shown(name)}: {half.type.name} is none of {', '.join(sorted(_TYPES))}"
            )
        _check_pair(target, halves, targets)
        changed.add(target)
    return frozenset(changed)


def _word(header: Header, key: str, wanted: object) -> None:
    value = header.values.get(key)
    if not isinstance(value, str) or value != wanted:
        told, meant = shown(str(value), 80), shown(str(wanted), 80)
        raise GgufError(f"cannot use the adapter: its {key} is {told}, not {meant}")


def _check_pair(target: str, halves: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
    if target not in targets:
        raise GgufError(f"cannot use the adapter: the model has no tensor {shown(target)}")
    if target == _EMBEDDING:
        raise GgufError(f"cannot use the adapter: it changes {target}, which this engine does not do")
    if len(targets[target].shape) < 2 or targets[target].type.name == "NVFP4":
        raise GgufError(f"cannot use the adapter: {shown(target)} is nothing that it could change")
    before, after = halves.get(target + _BEFORE), halves.get(target + _AFTER)
    if before is None or after is None:
        raise GgufError(f"cannot use the adapter: half of the pair for {shown(target)} is missing")
    columns, rows, *more = _four(targets[target])
    width, rank, *more_before = _four(before)
    inner, height, *more_after = _four(after)
    if (width, height) != (columns, rows) or inner != rank or more_before != more or more_after != more:
        shapes = " and ".join("x".join(map(str, tensor.shape)) for tensor in (before, after))
        whole = "x".join(map(str, targets[target].shape))
        raise GgufError(f"cannot use the adapter: its {shapes} for {shown(target)} do not fit {whole}")


def _four(tensor: Tensor) -> tuple[int, int, int, int]:
    """All four lengths, as the library has them."""
    first, second, third, fourth = (*tensor.shape, 1, 1, 1)[:4]
    return first, second, third, fourth
