"""What is known of a GGUF file once its header has been read. Made by `reader`, looked at by everybody else here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from h2qd.gguf.tensor_types import TensorType


@dataclass(frozen=True, slots=True)
class Skipped:
    """A value that was measured and not kept: `length` bytes of a text, or elements of an array of `kind`."""

    kind: str
    length: int


Number: TypeAlias = int | float | bool
Value: TypeAlias = Number | str | tuple[Number, ...] | Skipped
"""A number, a short string, a short array of numbers, or what is known of anything else."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor lies: `offset` counts from the start of the tensor data; `shape` begins with a row's length."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int
    elements: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header. `data_offset` is where the tensor data begins in a file of `file_bytes`."""

    version: int
    alignment: int
    file_bytes: int
    data_offset: int
    values: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
