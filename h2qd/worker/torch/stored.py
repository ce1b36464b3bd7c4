"""How a sequence lies in a file: a head, its tokens, then the keys and values of each layer, head by head.

A head says all that the numbers depend on beside the model file: what they are, how many, of which windows. A file is
read by a model only where its head is, byte for byte, the one that this model would write, and its size what follows
from that; then every number has its place. Called by `sessions`, which knows whose file it is, and that it is whole.
Of a sliding window there is what the next token sees.
"""

import os
import struct
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from h2qd.sessions.record import RecordError
from h2qd.worker.torch.cache import Cells, Layer
from h2qd.worker.torch.libraries import torch
from h2qd.worker.torch.model import Model

_HEAD = struct.Struct("<8s16s5I")
_MAGIC = b"h2q-kv-1"
_INT = "i"
_TOKEN_BYTES = array(_INT).itemsize


class Layout:
    """Of the sequences of `model`, whose facts say how many numbers a token has in a layer."""

    def __init__(self, model: Model) -> None:
        facts = model.facts
        self._room = model.ctx
        self._numbers = model.numbers
        self._device = model.device
        self._layers = layers = model.cells().layers if model.generates else []
        self._heads = max(facts.kv_heads, default=0)
        self._lengths = (facts.key_length, facts.value_length)
        self._name = f"{model.numbers}".removeprefix("torch.")
        self.kind = f"{self._name}/{model.weights}" if model.weights else self._name
        counts = (len(layers), self._heads, *self._lengths, model.piece)
        windows = array("I", [layer.window for layer in layers])
        self._head = _HEAD.pack(_MAGIC, self._name.encode()[:16], *counts) + windows.tobytes()

    @property
    def kept(self) -> bool:
        """Whether the sequences of this model can be written at all."""
        return bool(self._layers)

    def data_bytes(self, tokens: int) -> int:
        """What so many tokens take."""
        width: int = self._heads * sum(self._lengths) * self._numbers.itemsize
        cells = sum(tokens - layer.seen(tokens) for layer in self._layers)
        return len(self._head) + tokens * _TOKEN_BYTES + cells * width

    def serves(self, tokens: int, shared: int) -> bool:
        """Whether a sequence of so many tokens, once it is read, can go on after its first `shared` ones."""
        return shared == tokens or all(layer.seen(tokens) <= layer.seen(shared) for layer in self._layers)

    def write(self, cells: Cells, path: str, tick: Callable[[], None]) -> int:
        """Write what `cells` hold to the file at `path`; how many bytes. Raises OSError, RecordError."""
        with Path(path).open("wb") as file, torch.inference_mode():
            file.write(self._head)
            file.write(array(_INT, cells.tokens).tobytes())
            for layer in cells.layers:
                if not self._fits(layer):
                    raise RecordError("its cells are not as the model's configuration has them")
                file.writelines(part.cpu().view(torch.uint8).numpy().data for part in self._parts(layer))
                tick()
            return file.tell()

    def tokens(self, file: int, count: int, size: int) -> list[int]:
        """The tokens of an open file with `size` bytes of data, which say they are `count`. Raises `RecordError`."""
        if not 0 < count <= self._room or size != self.data_bytes(count):
            raise RecordError("a sequence of another model")
        head = len(self._head)
        data = os.pread(file, head + count * _TOKEN_BYTES, 0)
        if len(data) != head + count * _TOKEN_BYTES or data[:head] != self._head:
            raise RecordError("a sequence of another layout")
        return array(_INT, data[head:]).tolist()

    def read(self, file: int, tokens: list[int], whole: int, cells: Cells, tick: Callable[[], None]) -> None:
        """Make empty `cells` what the file holds, of which `tokens` are known. Raises `RecordError`, OSError."""
        at = len(self._head) + len(tokens) * _TOKEN_BYTES
        with torch.inference_mode():
            like = [torch.empty(1, self._heads, 0, length, dtype=self._numbers) for length in self._lengths]
            like = [one.to(self._device) for one in like]
            for layer in cells.layers:
                layer.open(len(tokens), like)
                for part in self._parts(layer):
                    at += _read_into(part, file, at)
                tick()
        cells.settled(tokens, whole)

    def _fits(self, layer: Layer) -> bool:
        shapes = [(one.shape[1], one.shape[3], one.dtype) for one in layer.kept]
        return shapes == [(self._heads, length, self._numbers) for length in self._lengths]

    @staticmethod
    def _parts(layer: Layer) -> Iterator[Any]:
        """The keys, then the values, of each head: what the next token sees of them, (tokens, length)."""
        start, end = layer.seen(layer.end) - layer.first, layer.end - layer.first
        for kept in layer.kept:
            for head in kept[0]:
                yield head[start:end]


def _read_into(part: Any, file: int, at: int) -> int:
    """Fill `part` from the file's bytes at `at`; how many. Raises `RecordError`, OSError."""
    taken = part if part.device.type == "cpu" else torch.empty(part.shape, dtype=part.dtype)
    size: int = taken.numel() * taken.element_size()
    if os.preadv(file, [taken.view(torch.uint8).numpy().data], at) != size:
        raise RecordError("shorter than it says")
    if taken is not part:
        part.copy_(taken)
    return size
