"""Which files of a folder make a model, and whether they may: weights as safetensors, a configuration, a tokenizer.

Weights in pickled files (.bin, .pt, .ckpt, .pkl) can run code when they are read; they are not. Code that a model
brings along (`auto_map`) is not run, and weights in somebody's quantized layout are not guessed at. Called by `facts`
and, at a load, by the engine. Invariant: a `Folder` is of a family in `families`, each of its tensors in one part.
"""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from h2qd.safetensors.document import Document, read
from h2qd.safetensors.errors import SafetensorsError
from h2qd.safetensors.families import FAMILIES, Family
from h2qd.safetensors.header import Header, Tensor, read_header
from h2qd.wire.names import shown

ENTRIES_MAX = 4096
PARTS_MAX = 1024
JSON_BYTES_MAX = 2**20
INDEX_BYTES_MAX = 16 * 2**20
TOKENIZER_BYTES_MAX = 256 * 2**20

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
GENERATION = "generation_config.json"
MODULES = "modules.json"
SENTENCES = "sentence_bert_config.json"
POOLING = "1_Pooling/config.json"
INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_OTHERS = (CONFIG, TOKENIZER, TOKENIZER_CONFIG, TEMPLATE, GENERATION, MODULES, SENTENCES, POOLING, INDEX)

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5")
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")


@dataclass(frozen=True, slots=True)
class Part:
    """A file with weights; `name` is its name in the folder."""

    name: str
    header: Header


class Word(msgspec.Struct, frozen=True):
    """A token as it is written."""

    content: str = ""


class NamedTemplate(msgspec.Struct, frozen=True):
    """One of several chat templates."""

    name: str = ""
    template: str = ""


class TokenizerConfig(msgspec.Struct, frozen=True):
    """What is looked at of tokenizer_config.json."""

    bos_token: str | Word | None = None
    eos_token: str | Word | None = None
    chat_template: str | list[NamedTemplate] | None = None
    auto_map: dict[str, object] | list[object] | str | None = None


@dataclass(frozen=True, slots=True)
class Folder:
    """A checked folder. `files` are the names of all files that make the model, in order."""

    path: Path
    kind: str
    family: Family
    config: Document
    tokenizer: "TokenizerConfig"
    parts: tuple[Part, ...]
    files: tuple[str, ...]

    @property
    def tensors(self) -> Iterator[Tensor]:
        """Of all parts."""
        return (tensor for part in self.parts for tensor in part.header.tensors)


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]


_Struct = TypeVar("_Struct", bound=msgspec.Struct)


def read_folder(path: str | Path) -> Folder:
    """The model in the folder at `path`. Raises `SafetensorsError`, OSError when a file cannot be opened or read."""
    folder = Path(path)
    names = files_of(folder)
    if CONFIG not in names:
        raise SafetensorsError(f"cannot use the folder as a model: it has no {CONFIG}")
    config = read(CONFIG, read_file(folder, CONFIG))
    if config.values.get("auto_map"):
        raise _own_code(CONFIG)
    kind, family = _family(config)
    parts = _parts(folder, names)
    if TOKENIZER not in names:
        raise SafetensorsError(f"cannot use the folder as a model: it has no {TOKENIZER}, and no other kind is read")
    with _opened(folder, TOKENIZER) as file:
        _bounded(TOKENIZER, file, TOKENIZER_BYTES_MAX)
    tokenizer = typed(folder, TOKENIZER_CONFIG, TokenizerConfig) if TOKENIZER_CONFIG in names else TokenizerConfig()
    if tokenizer.auto_map:
        raise _own_code(TOKENIZER_CONFIG)
    return Folder(folder, kind, family, config, tokenizer, parts, _used(names, parts))


def files_of(folder: Path) -> tuple[str, ...]:
    """The files in the folder that can be part of a model, in order. Raises `SafetensorsError`, OSError."""
    names = []
    with os.scandir(folder) as entries:
        for count, entry in enumerate(entries):
            if count >= ENTRIES_MAX:
                raise SafetensorsError(f"cannot use a folder of over {ENTRIES_MAX} entries as a model")
            if entry.name in _OTHERS or entry.name.endswith((".safetensors", *_PICKLES)):
                names.append(entry.name)
    if (folder / POOLING).is_file():
        names.append(POOLING)
    return tuple(sorted(names))


def read_file(folder: Path, name: str, bytes_max: int = JSON_BYTES_MAX) -> bytes:
    """The content of a file of at most `bytes_max` bytes. Raises `SafetensorsError`, OSError."""
    with _opened(folder, name) as file:
        _bounded(name, file, bytes_max)
        return file.read(bytes_max)


def typed(folder: Path, name: str, shape: type[_Struct]) -> _Struct:
    """The JSON file `name` as a `shape`, which says what is looked at. Raises `SafetensorsError`, OSError."""
    try:
        return msgspec.json.decode(read_file(folder, name), type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SafetensorsError(f"cannot read {name}: {shown(str(error), 200)}") from None


def open_regular(path: str | Path) -> BufferedReader:
    """The regular file at `path`. Raises `SafetensorsError` when it is something else, OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise SafetensorsError(f"cannot use {shown(Path(path).name)}: it is not a regular file")


def _opened(folder: Path, name: str) -> BufferedReader:
    return open_regular(folder / name)


def _bounded(name: str, file: BinaryIO, bytes_max: int) -> None:
    size = os.fstat(file.fileno()).st_size
    if size > bytes_max:
        raise SafetensorsError(f"cannot use {name} of {size} bytes: at most {bytes_max}")


def _own_code(name: str) -> SafetensorsError:
    return SafetensorsError(f"cannot run the model: {name} names code of its own (auto_map), which is not run")


def _family(config: Document) -> tuple[str, Family]:
    kind = config.text("model_type")
    family = FAMILIES.get(kind)
    if family is None:
        raise SafetensorsError(
            f"cannot run a model of type {shown(kind or 'unknown', 64)}: it must be one of {', '.join(FAMILIES)}"
        )
    if config.flag("is_encoder_decoder"):
        raise config.fault("is_encoder_decoder", "such models are not run")
    if config.values.get("quantization_config"):
        raise config.fault("quantization_config", "weights quantized so are not read: give plain ones")
    return kind, family


def _parts(folder: Path, names: Sequence[str]) -> tuple[Part, ...]:
    """The files with weights, each tensor in the one that the index says."""
    if INDEX in names:
        placed = _placed(folder)
        wanted = sorted(set(placed.values()))
    elif _SINGLE in names:
        placed, wanted = None, [_SINGLE]
    else:
        raise _no_weights(names)
    if len(wanted) > PARTS_MAX:
        raise SafetensorsError(f"cannot use a model in {len(wanted)} files: at most {PARTS_MAX}")
    parts = tuple(Part(name, _header(folder, name)) for name in wanted)
    found: dict[str, str] = {}
    for part in parts:
        for tensor in part.header.tensors:
            if tensor.name in found:
                raise SafetensorsError(
                    f"cannot use tensor {shown(tensor.name)}: both {found[tensor.name]} and {part.name} have it"
                )
            found[tensor.name] = part.name
    for tensor_name, name in (placed or {}).items():
        if found.get(tensor_name) != name:
            raise SafetensorsError(f"cannot find tensor {shown(tensor_name)} in {name}, where {INDEX} says it is")
    if not found:
        raise SafetensorsError("cannot run a model without tensors")
    return parts


def _placed(folder: Path) -> dict[str, str]:
    """Which file has which tensor."""
    data = read_file(folder, INDEX, INDEX_BYTES_MAX)
    try:
        return msgspec.json.decode(data, type=_Index).weight_map
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SafetensorsError(f"cannot read {INDEX}: {shown(str(error), 200)}") from None


def _header(folder: Path, name: str) -> Header:
    if not _PART.fullmatch(name):
        raise SafetensorsError(f"cannot use {INDEX}: it names {shown(name, 80)}, which is no .safetensors file")
    try:
        with _opened(folder, name) as file:
            return read_header(file)
    except SafetensorsError as error:
        raise SafetensorsError(f"{error} (in {name})") from None


def _no_weights(names: Sequence[str]) -> SafetensorsError:
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        return SafetensorsError(
            f"cannot use {shown(pickles[0], 80)}: weights are read from .safetensors files only, because reading "
            "others can run code that they carry; convert them"
        )
    return SafetensorsError(f"cannot use the folder as a model: it has neither {_SINGLE} nor {INDEX}")


def _used(names: Sequence[str], parts: Sequence[Part]) -> tuple[str, ...]:
    """Of the files there are, those that make the model."""
    weights = {part.name for part in parts}
    return tuple(name for name in names if name in weights or name in _OTHERS)
