"""The numbers of a model: part by part and tensor by tensor, from mapped files into modules that have none yet.

Everything is compared by name and shape before the first byte of weights is read. A tensor that stays as it is in the
file remains a mapped page of it, which the kernel can take back; one that is converted or quantized becomes memory of
this process. Called by `model`. Invariant: when `load` returns, no parameter is without numbers.
"""

from collections.abc import Mapping
from typing import Any

from h2qd.safetensors.folder import Folder, Part
from h2qd.safetensors.header import Tensor
from h2qd.wire.names import shown
from h2qd.worker.crew import Crew
from h2qd.worker.engine import Beat, EngineError, Progress
from h2qd.worker.torch.libraries import safe_open, torch
from h2qd.worker.torch.linear import Int4Linear, Int8Linear, QuantizedLinear, fits_int4
from h2qd.worker.torch.memory import available_bytes

_TOUCHED_BYTES = 64 * 2**20
_PAGE_BYTES = 4096

_LEFT_OUT = (".rotary_emb.inv_freq", ".position_ids", ".masked_bias", ".attention.bias")
"""Ends of names of tensors that older releases saved and that are computed instead."""


def load(module: Any, folder: Folder, quantize: str, dtype: Any, crew: Crew, progress: Progress, beat: Beat) -> None:
    """Fill `module` in. Raises `EngineError` (load_failed): a tensor lacks, is odd or too many; memory is short."""
    names = _matched(module, folder)
    quantized = _replace_linears(module, quantize) if quantize in ("int8", "int4") else {}
    total = sum(tensor.size_bytes for tensor in folder.tensors)
    done = 0
    for number, part in enumerate(folder.parts, 1):
        _check_room(part, number, len(folder.parts), dtype)
        ready: dict[str, Any] = {}
        with safe_open(folder.path / part.name, framework="pt", device="cpu") as file:
            for tensor in part.header.tensors:
                places = names.get(tensor.name, ())
                if places:
                    value = _read(file, tensor)
                    if places[0] in quantized:
                        quantized[places[0]].take(value)
                    else:
                        # One mapped tensor would keep all of the file's pages that were read for the others.
                        value = value.clone() if quantized else value
                        ready.update(dict.fromkeys(places, _settled(value, dtype, beat)))
                    del value
                done += tensor.size_bytes
                crew.muster()
                beat.tick()
                progress(done / max(1, total))
        module.load_state_dict(ready, strict=False, assign=True)
    empty = next((name for name, one in module.named_parameters() if one.device.type == "meta"), None)
    if empty is not None:
        raise EngineError("load_failed", f"cannot load the model: nothing was found for {shown(empty, 200)}")


def _matched(module: Any, folder: Folder) -> dict[str, tuple[str, ...]]:
    """The parameters that each tensor of the files is for: one, or several that are tied."""
    wanted = {name: tuple(one.shape) for name, one in module.state_dict().items()}
    tied: dict[int, list[str]] = {}
    for name, one in module.named_parameters(remove_duplicate=False):
        tied.setdefault(id(one), []).append(name)
    groups = {name: tuple(group) for group in tied.values() for name in group}
    found: dict[str, Tensor] = {tensor.name: tensor for tensor in folder.tensors}
    inner = f"{module.base_model_prefix}."
    names: dict[str, tuple[str, ...]] = {}
    filled: set[str] = set()
    for name, tensor in found.items():
        place = next((p for p in (name, inner + name, name.removeprefix(inner)) if p in wanted), None)
        if place is None:
            if name.removeprefix(inner).startswith(folder.family.ignored) or name.endswith(_LEFT_OUT):
                continue
            raise EngineError("load_failed", f"cannot load the model: it has no place for tensor {shown(name, 200)}")
        if wanted[place] != tensor.shape:
            raise EngineError(
                "load_failed",
                f"cannot load the model: tensor {shown(name, 200)} has the shape {list(tensor.shape)}, "
                f"config.json makes it {list(wanted[place])}",
            )
        if place in filled:
            if len(groups.get(place, ())) > 1:
                continue  # tied parameters, saved twice
            raise EngineError("load_failed", f"cannot load the model: tensor {shown(name, 200)} is there twice")
        names[name] = groups.get(place, (place,))
        filled.update(names[name])
    missing = next((name for name in groups if name not in filled), None)
    if missing is not None:
        raise EngineError("load_failed", f"cannot load the model: tensor {shown(missing, 200)} is missing")
    return names


def _replace_linears(module: Any, quantize: str) -> Mapping[str, QuantizedLinear]:
    """Put quantized layers in the place of linear ones; by the names of their weights. Not where weights are tied."""
    shared = [id(one) for _, one in module.named_parameters(remove_duplicate=False)]
    replaced: dict[str, QuantizedLinear] = {}
    for name, linear in list(module.named_modules()):
        if type(linear) is not torch.nn.Linear or shared.count(id(linear.weight)) > 1:
            continue
        inputs, outputs = linear.in_features, linear.out_features
        # The matrix of the output is precious, and large: what 4 bits take while they are made would be felt.
        small = quantize == "int4" and fits_int4(inputs, outputs) and linear is not module.get_output_embeddings()
        layer = (Int4Linear if small else Int8Linear)(inputs, outputs, bias=linear.bias is not None)
        module.set_submodule(name, layer)
        replaced[f"{name}.weight"] = layer
    if not replaced:
        raise EngineError("load_failed", "cannot quantize the model: it has no linear layers")
    return replaced


def _read(file: Any, tensor: Tensor) -> Any:
    value = file.get_tensor(tensor.name)
    if tuple(value.shape) != tensor.shape:  # the file was changed after it was checked
        raise EngineError("load_failed", f"cannot load the model: tensor {shown(tensor.name, 200)} changed meanwhile")
    return value


def _settled(value: Any, dtype: Any, beat: Beat) -> Any:
    """`value` in `dtype`; where it stays mapped, its pages are brought in now, and not in the first request."""
    if value.is_floating_point() and value.dtype != dtype:
        return value.to(dtype)
    pages = value.reshape(-1).view(torch.uint8)
    for start in range(0, pages.numel(), _TOUCHED_BYTES):
        pages[start : start + _TOUCHED_BYTES : _PAGE_BYTES].sum()
        beat.tick()
    return value


def _check_room(part: Part, number: int, parts: int, dtype: Any) -> None:
    needed = sum(tensor.elements for tensor in part.header.tensors) * dtype.itemsize
    available = available_bytes()
    if needed > available:
        raise EngineError(
            "load_failed",
            f"cannot go on with the load: part {number} of {parts} takes {needed} bytes, {available} are available",
        )
