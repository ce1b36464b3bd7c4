"""Reads the header of a .safetensors file and checks all of it, before a library sees the file.

What it holds is bounded whatever the file claims. Layout: the header's length in 8 bytes, little-endian; the header,
a JSON object of names to dtype, shape and data offsets; the tensor data. Called by `folder`, for an import and again
at a load. Invariant: the tensors of a `Header` lie one after another and fill the rest of the file.
"""

import os
import struct
from dataclasses import dataclass
from math import prod
from typing import Annotated, BinaryIO

import msgspec

from h2qd.safetensors.errors import SafetensorsError
from h2qd.wire.names import shown

HEADER_BYTES_MAX = 8 * 2**20
FILE_BYTES_MAX = 2**44
TENSORS_MAX = 32_768
NAME_CHARS_MAX = 512
DIMENSIONS_MAX = 8

DTYPE_BYTES: dict[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}
"""Bytes of an element, by what the format calls its type."""

_LENGTH = struct.Struct("<Q")
_Offset = Annotated[int, msgspec.Meta(ge=0, le=FILE_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file; `size_bytes` are its own."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header of a file of `file_bytes`, its tensors in the order of their data."""

    file_bytes: int
    tensors: tuple[Tensor, ...]


class _Entry(msgspec.Struct, frozen=True):
    """A tensor's description. All that is under `__metadata__` are texts, so that passes for an empty one."""

    dtype: str = ""
    shape: Annotated[list[_Offset], msgspec.Meta(max_length=DIMENSIONS_MAX)] = []
    data_offsets: tuple[_Offset, _Offset] | None = None


_decoder = msgspec.json.Decoder(dict[str, _Entry])


def read_header(file: BinaryIO) -> Header:
    """The header of an open file. Raises `SafetensorsError` when no library may be given it, OSError."""
    file_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file_bytes > FILE_BYTES_MAX:
        raise SafetensorsError(f"cannot take a file of {file_bytes} bytes: at most {FILE_BYTES_MAX}")
    head = file.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise SafetensorsError(f"cannot read the header's length: the file has {file_bytes} bytes")
    (length,) = _LENGTH.unpack(head)
    if length > HEADER_BYTES_MAX:
        raise SafetensorsError(f"cannot take a header of {length} bytes: at most {HEADER_BYTES_MAX}")
    data_bytes = file_bytes - _LENGTH.size - length
    if data_bytes < 0:
        raise SafetensorsError(f"cannot read a header of {length} bytes: the file has {file_bytes}")
    text = file.read(length)
    if len(text) < length:
        raise SafetensorsError(f"cannot read a header of {length} bytes: the file was cut meanwhile")
    tensors = sorted(_tensors(_entries(text)), key=lambda found: (found[0], found[1]))
    end = 0
    for start, stop, tensor in tensors:
        if start != end:
            raise SafetensorsError(
                f"cannot use tensor {shown(tensor.name)}: its data begin at byte {start}, those before end at {end}"
            )
        end = stop
    if end != data_bytes:
        raise SafetensorsError(f"cannot use the file: its tensors take {end} bytes, it has {data_bytes} for them")
    return Header(file_bytes, tuple(tensor for _, _, tensor in tensors))


def _entries(text: bytes) -> dict[str, _Entry]:
    if text.count(b"{") > TENSORS_MAX + 2:  # before anything is made of it; names with braces are not lost on anyone
        raise SafetensorsError(f"cannot take a header of over {TENSORS_MAX} tensors")
    try:
        entries = _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SafetensorsError(f"cannot read the header: {shown(str(error), 200)}") from None
    entries.pop("__metadata__", None)
    return entries


def _tensors(entries: dict[str, _Entry]) -> list[tuple[int, int, Tensor]]:
    """The tensors and where their data begin and end. An empty one takes no data, wherever it says they are."""
    found = []
    for name, entry in entries.items():
        if not 0 < len(name) <= NAME_CHARS_MAX:
            raise SafetensorsError(f"cannot use a tensor with a name of {len(name)} characters")
        element_bytes = DTYPE_BYTES.get(entry.dtype)
        if element_bytes is None:
            raise SafetensorsError(f"cannot use tensor {shown(name)}: its type {shown(entry.dtype, 40)} is unknown")
        if entry.data_offsets is None:
            raise SafetensorsError(f"cannot use tensor {shown(name)}: it has no data")
        start, stop = entry.data_offsets
        elements = prod(entry.shape)
        if stop - start != elements * element_bytes:
            raise SafetensorsError(
                f"cannot use tensor {shown(name)}: its data have {stop - start} bytes, "
                f"its shape takes {shown(str(elements * element_bytes), 40)}"
            )
        tensor = Tensor(name, entry.dtype, tuple(entry.shape), elements, stop - start)
        found.append((start, stop, tensor))
    return found
