"""Writes model folders by hand, also such as no library would."""

import json
import struct
from math import prod
from pathlib import Path
from typing import Any

from h2qd.safetensors.header import DTYPE_BYTES

Shapes = dict[str, tuple[str, list[int]]]

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "vocab_size": 10,
}

TENSORS: Shapes = {
    "model.embed_tokens.weight": ("F32", [10, 8]),
    "model.layers.0.mlp.up_proj.weight": ("F32", [16, 8]),
    "model.layers.1.mlp.up_proj.weight": ("F32", [16, 8]),
}


def described(shapes: Shapes) -> dict[str, Any]:
    """A header of these tensors, one after another."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in shapes.items():
        size = prod(shape) * DTYPE_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return header


def packed(header: Any, data_bytes: int) -> bytes:
    """A file with this header and so many bytes of data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data_bytes)


def weights(shapes: Shapes) -> bytes:
    """A whole file."""
    return packed(described(shapes), sum(prod(shape) * DTYPE_BYTES[dtype] for dtype, shape in shapes.values()))


def folder(path: Path, config: dict[str, Any] | None = None, tensors: Shapes | None = None) -> Path:
    """A model folder."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(LLAMA if config is None else config))
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes(weights(TENSORS if tensors is None else tensors))
    return path


def split(path: Path, **placed: list[str]) -> None:
    """Put the weights into files of these names, with an index."""
    (path / "model.safetensors").unlink()
    weight_map = {}
    for file, names in placed.items():
        (path / f"{file}.safetensors").write_bytes(weights({name: TENSORS[name] for name in names}))
        weight_map.update(dict.fromkeys(names, f"{file}.safetensors"))
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
