"""Reads a GGUF header (versions 2 and 3, little-endian) and checks all of it, before native code sees the file.

What it holds is bounded whatever the file claims: long arrays and strings are measured and skipped. It checks the
format and where the tensors lie; what the values mean is for `facts`. Called by workers, when a model is imported and
again at a load if the file changed. Layout: magic, version, two counts, key-value pairs, tensor descriptions,
padding, tensor data. Invariant: a `Header` it returns describes tensors that lie within the file, aligned and apart.
"""

import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from h2qd.gguf.errors import GgufError
from h2qd.gguf.header import Header, Number, Skipped, Tensor, Value
from h2qd.gguf.tensor_types import TENSOR_TYPES
from h2qd.gguf.window import Window
from h2qd.wire.names import shown

MAGIC = b"GGUF"
HEADER_BYTES_MAX = 128 * 2**20
FILE_BYTES_MAX = 2**44
"""16 TiB: far beyond any model, and every sum made of such sizes still fits the wire's integers."""

PAIRS_MAX = 4096
TENSORS_MAX = 16_384
KEY_BYTES_MAX = 1024
TENSOR_NAME_BYTES_MAX = 63
"""One less than ggml's GGML_MAX_NAME, which counts the terminating zero."""

DIMENSIONS_MAX = 4
ALIGNMENT_DEFAULT = 32
ALIGNMENT_MAX = 2**20
ARRAY_KEPT_MAX = 1024
STRING_KEPT_BYTES_MAX = 4096
KEPT_BYTES_MAX = 2**20
"""All that is kept of the metadata of one file, keys and values, as it lies in the file; real files need 20 KB."""

_ELEMENTS_MAX = 2**63 - 1
_ALIGNMENT_KEY = "general.alignment"
_KINDS = {_ALIGNMENT_KEY: 4, "adapter.lora.alpha": 6}
"""Keys that native code reads without a look at what kind of number they are."""

_STRING = 8
_ARRAY = 9
_NUMBERS: dict[int, tuple[str, str]] = {
    0: ("uint8", "B"),
    1: ("int8", "b"),
    2: ("uint16", "H"),
    3: ("int16", "h"),
    4: ("uint32", "I"),
    5: ("int32", "i"),
    6: ("float32", "f"),
    7: ("bool", "?"),
    10: ("uint64", "Q"),
    11: ("int64", "q"),
    12: ("float64", "d"),
}


def identity(status: os.stat_result) -> list[int]:
    """What tells that a file is still the very one that was checked: device, inode, size and mtime in ns."""
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]


def read_header(source: BinaryIO | str | Path) -> Header:
    """The header of a file, given as a path or opened for binary reading.

    Raises `GgufError` when native code must not be given this file, OSError when it cannot be opened or read.
    """
    if not isinstance(source, str | Path):
        return _read(Window(source, HEADER_BYTES_MAX))
    with _opened(source) as file:
        return _read(Window(file, HEADER_BYTES_MAX))


def _opened(path: str | Path) -> BinaryIO:
    """The regular file at `path`. Opening a pipe would wait for its other end: O_NONBLOCK comes back at once."""
    if "\0" in str(path):
        raise GgufError(f"cannot open {shown(str(path))}: the path holds a zero byte")
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb", buffering=0)
    os.close(descriptor)
    raise GgufError(f"cannot read {shown(str(path))}: it is not a regular file")


def _read(window: Window) -> Header:
    if window.file_bytes > FILE_BYTES_MAX:
        raise GgufError(f"cannot take a file of {window.file_bytes} bytes: at most {FILE_BYTES_MAX}")
    version = _version(window)
    tensor_count = window.u64()
    pair_count = window.u64()
    if tensor_count > TENSORS_MAX:
        raise GgufError(f"cannot take {tensor_count} tensors: at most {TENSORS_MAX}")
    if pair_count > PAIRS_MAX:
        raise GgufError(f"cannot take {pair_count} metadata keys: at most {PAIRS_MAX}")
    values = _values(window, pair_count)
    alignment = _alignment(values)
    tensors = _tensors(window, tensor_count, alignment)
    data_offset = _aligned(window.position, alignment)
    for tensor in tensors:
        end = data_offset + tensor.offset + tensor.size_bytes
        if end > window.file_bytes:
            raise GgufError(
                f"cannot use tensor {shown(tensor.name)}: it ends at byte {end}, the file at byte {window.file_bytes}"
            )
    return Header(version, alignment, window.file_bytes, data_offset, values, tensors)


def _version(window: Window) -> int:
    window.subject = "the magic"
    magic = window.take(4)
    if magic != MAGIC:
        raise GgufError(f"cannot take a file that begins with {magic.hex()}: GGUF files begin with {MAGIC.hex()}")
    window.subject = "the counts"
    version = window.u32()
    if version & 0xFFFF == 0 and version:
        raise GgufError(f"cannot take a big-endian file (its version reads {version:#010x}): little-endian ones only")
    if version not in {2, 3}:
        raise GgufError(f"cannot take GGUF version {version}: versions 2 and 3 only")
    return version


def _values(window: Window, count: int) -> dict[str, Value]:
    values: dict[str, Value] = {}
    kept_bytes = 0
    for index in range(count):
        window.subject = f"metadata key {index}"
        key = _name(window, KEY_BYTES_MAX)
        if key in values:
            raise GgufError(f"cannot take key {shown(key)} twice")
        window.subject = f"the value of {shown(key)}"
        kind = window.u32()
        if _KINDS.get(key, kind) != kind:
            raise GgufError(f"cannot use {key}: it must be a {_NUMBERS[_KINDS[key]][0]}, not of type {kind}")
        start = window.position
        value = _value(window, key, kind)
        kept_bytes += len(key) + (0 if isinstance(value, Skipped) else window.position - start)
        if kept_bytes > KEPT_BYTES_MAX:
            raise GgufError(f"cannot keep the metadata: its short values come to more than {KEPT_BYTES_MAX} bytes")
        values[key] = value
    return values


def _value(window: Window, key: str, kind: int) -> Value:
    if kind == _STRING:
        length = window.u64()
        if length > STRING_KEPT_BYTES_MAX:
            window.skip(length)
            return Skipped("text", length)
        return window.take(length).decode("utf-8", "replace")
    if kind == _ARRAY:
        return _array(window, key)
    if kind not in _NUMBERS:
        raise GgufError(f"cannot read key {shown(key)}: there is no value type {kind}")
    return _numbers(window, kind, 1)[0]


def _array(window: Window, key: str) -> Value:
    kind = window.u32()
    count = window.u64()
    if kind == _ARRAY:
        raise GgufError(f"cannot read key {shown(key)}: it is an array of arrays")
    if kind == _STRING:
        if count > window.left:
            raise GgufError(f"cannot read key {shown(key)}: {count} strings are more than the file can hold")
        window.skip_strings(count)
        return Skipped("string", count)
    if kind not in _NUMBERS:
        raise GgufError(f"cannot read key {shown(key)}: there is no value type {kind}")
    if count > ARRAY_KEPT_MAX:
        name, code = _NUMBERS[kind]
        window.skip(count * struct.calcsize(f"<{code}"))
        return Skipped(name, count)
    return _numbers(window, kind, count)


def _numbers(window: Window, kind: int, count: int) -> tuple[Number, ...]:
    layout = struct.Struct(f"<{count}{_NUMBERS[kind][1]}")
    return layout.unpack(window.take(layout.size))


def _alignment(values: Mapping[str, Value]) -> int:
    """The alignment of the tensor data. Multiples of 8 only, says the format, and powers of two."""
    alignment = values.get(_ALIGNMENT_KEY, ALIGNMENT_DEFAULT)
    if not isinstance(alignment, int) or not 8 <= alignment <= ALIGNMENT_MAX or alignment & (alignment - 1):
        raise GgufError(
            f"cannot use {_ALIGNMENT_KEY} = {alignment}: it must be a power of two between 8 and {ALIGNMENT_MAX}"
        )
    return alignment


def _tensors(window: Window, count: int, alignment: int) -> tuple[Tensor, ...]:
    """The tensor descriptions. As ggml does, they are taken only back to back in the order of their data."""
    tensors: dict[str, Tensor] = {}
    expected = 0
    for index in range(count):
        window.subject = f"tensor {index}"
        tensor = _tensor(window)
        if tensor.name in tensors:
            raise GgufError(f"cannot take tensor {shown(tensor.name)} twice")
        _check_offset(tensor, expected, alignment)
        expected = _aligned(tensor.offset + tensor.size_bytes, alignment)
        tensors[tensor.name] = tensor
    return tuple(tensors.values())


def _check_offset(tensor: Tensor, expected: int, alignment: int) -> None:
    if tensor.offset == expected:
        return
    name, offset = shown(tensor.name), tensor.offset
    if offset % alignment:
        raise GgufError(f"cannot use tensor {name}: its offset {offset} is not a multiple of {alignment}")
    if offset < expected:
        raise GgufError(
            f"cannot use tensor {name}: its offset {offset} overlaps the one before, ending at {expected}"
        )
    raise GgufError(f"cannot use tensor {name}: its offset {offset} leaves a gap after {expected}")


def _tensor(window: Window) -> Tensor:
    name = _name(window, TENSOR_NAME_BYTES_MAX)
    dimensions = window.u32()
    if dimensions > DIMENSIONS_MAX:
        raise GgufError(f"cannot use tensor {shown(name)}: {dimensions} dimensions are more than {DIMENSIONS_MAX}")
    shape = tuple(window.u64() for _ in range(dimensions)) or (1,)
    elements = 1
    for length in shape:
        if length == 0:
            raise GgufError(f"cannot use tensor {shown(name)}: its shape {_product(shape)} is empty")
        elements *= length
    if elements > _ELEMENTS_MAX:
        raise GgufError(f"cannot use tensor {shown(name)}: its shape {_product(shape)} overflows")
    number = window.u32()
    kind = TENSOR_TYPES.get(number)
    if kind is None:
        raise GgufError(f"cannot use tensor {shown(name)}: there is no tensor type {number}")
    if shape[0] % kind.elements:
        raise GgufError(
            f"cannot use tensor {shown(name)}: rows of {shape[0]} are no multiple of {kind.name}'s {kind.elements}"
        )
    return Tensor(name, shape, kind, window.u64(), elements, elements // kind.elements * kind.size_bytes)


def _name(window: Window, bytes_max: int) -> str:
    """A key or a tensor's name. Native code sees C strings: a zero inside would make two names one."""
    length = window.u64()
    if not 1 <= length <= bytes_max:
        raise GgufError(f"cannot read {window.subject}: its name is {length} bytes long, not 1 to {bytes_max}")
    raw = window.take(length)
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise GgufError(f"cannot read {window.subject}: its name is not UTF-8") from None
    if "\0" in name:
        raise GgufError(f"cannot read {window.subject}: its name {shown(name)} holds a zero byte")
    return name


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _product(shape: tuple[int, ...]) -> str:
    return "x".join(str(length) for length in shape)
