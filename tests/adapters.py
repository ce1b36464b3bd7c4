"""Random LoRA adapters for the tiny models of `architectures`, written as real GGUF files."""

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from h2qd.gguf.reader import read_header
from h2qd.wire.workers import AdapterFile

ALL = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
RANK = 4


def write_adapter(
    path: Path,
    model: Path,
    seed: int = 1,
    *,
    targets: Sequence[str] = ALL,
    size: float = 0.2,
    alpha: float = 8.0,
    matrices: Type = Type.F32,
) -> Path:
    """An adapter at `path` for the model file `model`, which changes its `targets` in every layer."""
    header = read_header(model)
    architecture = header.values["general.architecture"]
    assert isinstance(architecture, str)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    numbers = np.random.default_rng(seed)
    for tensor in header.tensors:
        if tensor.name.split(".")[-2] not in targets or len(tensor.shape) < 2:
            continue
        columns, rows, *experts = tensor.shape
        for half, shape in (("a", (*experts, RANK, columns)), ("b", (*experts, rows, RANK))):
            data = (numbers.standard_normal(shape) * size).astype(np.float32 if matrices == Type.F32 else np.float16)
            writer.add_tensor(f"{tensor.name}.lora_{half}", data, raw_dtype=matrices)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def adapter_file(name: str, path: Path) -> AdapterFile:
    """What a load is told of the adapter at `path`."""
    return AdapterFile(name, str(path), path.stat().st_size)
