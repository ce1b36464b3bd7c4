"""LoRA adapters of a loaded model: small pairs of matrices that are added to its weights where a request asks for it.

Loaded by `model`, after the weights and before the context; they go with the model. Which of them take part is a
state of the context, so a pass has one set of them: `context` sets it, `turns` shares passes among sets. Cells of
the KV cache are of the set that computed them. `graph` sees to it that a pass reads all of each. Invariant: native
code reads the very file that was checked, and no adapter that does not fit the model.
"""

import ctypes
import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeAlias

from llama_cpp import llama_cpp as native

from h2qd.gguf.adapters import check_adapter
from h2qd.gguf.errors import GgufError
from h2qd.gguf.header import Header
from h2qd.gguf.reader import identity, read_header
from h2qd.wire.names import shown
from h2qd.wire.workers import AdapterFile, LoadModel
from h2qd.worker.engine import Beat, EngineError
from h2qd.worker.llama import log

Used: TypeAlias = tuple[tuple[str, float], ...]
"""A set of adapters: names, in order, each with its scale, which is not 0."""

NONE: Used = ()


@dataclass(frozen=True, slots=True)
class Adapter:
    """The native adapter, which file it was, and the weights that it `changes`.

    `identity` is as `gguf.reader` tells it.
    """

    address: Any
    identity: tuple[int, ...]
    changes: frozenset[str]


def load_adapters(order: LoadModel, model: int, beat: Beat) -> dict[str, Adapter]:
    """Those that `order` names, by name. Raises `EngineError`: file_not_found, invalid_model_file, load_failed.

    On error, what was loaded by then goes with the model.
    """
    if not order.adapters:
        return {}
    try:
        header = read_header(order.path)
    except (GgufError, OSError) as error:  # it could be read a moment ago
        raise EngineError("invalid_model_file", f"cannot check adapters against the model: {error}") from error
    adapters = {}
    for file in order.adapters:
        beat.tick()
        adapters[file.name] = _load(file, header, model)
    return adapters


def used(wanted: Mapping[str, float], adapters: Mapping[str, Adapter]) -> Used:
    """The set that a request asked for. Raises `EngineError` (invalid_request)."""
    for name in wanted:
        if name not in adapters:
            raise EngineError("invalid_request", f"cannot use the adapter {shown(name)}: the model has none of it")
    return tuple(sorted((name, scale) for name, scale in wanted.items() if scale != 0))


def mark(adapters: Used, loaded: Mapping[str, Adapter]) -> str:
    """What tells this set from any other, also after the next load; empty for none."""
    if not adapters:
        return ""
    files = [(loaded[name].identity, scale) for name, scale in adapters]
    return hashlib.sha256(repr(files).encode()).hexdigest()


def apply(context: int, adapters: Used, loaded: Mapping[str, Adapter]) -> None:
    """Have the next passes of `context` computed with these, and no others. It lays its buffers out anew for that."""
    count = len(adapters)
    addresses = (native.llama_adapter_lora_p_ctypes * count)(*(loaded[name].address for name, _ in adapters))
    scales = (ctypes.c_float * count)(*(scale for _, scale in adapters))
    native.llama_set_adapters_lora(context, addresses, count, scales)


def _load(file: AdapterFile, model_header: Header, model: int) -> Adapter:
    what = f"the adapter {shown(file.name)}"
    try:
        with _opened(file.path) as source:
            status = os.fstat(source.fileno())
            _check_size(status.st_size, file.size_bytes)
            changes = check_adapter(read_header(source), model_header)
            log.capture()
            # Through the descriptor: what is loaded is what was checked.
            path = f"/proc/self/fd/{source.fileno()}"
            address = native.llama_adapter_lora_init(model, path.encode())
    except GgufError as error:
        raise EngineError("invalid_model_file", f"cannot load {what}: {error}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else "not a path"
        raise EngineError("file_not_found", f"cannot read {what}: {reason}") from error
    if not address:
        told = log.last_error() or "the library refused the file"
        raise EngineError("load_failed", f"cannot load {what}: {shown(told)}")
    return Adapter(address, tuple(identity(status)), changes)


def _check_size(size: int, planned: int) -> None:
    if size > planned:
        raise GgufError(f"it has {size} bytes, and had {planned} when the daemon started")


def _opened(path: str) -> BinaryIO:
    """Not blocking: the open of a fifo that nobody writes would wait for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb", buffering=0)
    os.close(descriptor)
    raise GgufError("it is not a regular file")
