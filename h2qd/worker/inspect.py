"""What a model is, a file or a folder: headers checked and read, bytes hashed. Called by the loop, in a worker.

Native code never sees the file here, and nothing is kept or decided: the supervisor gets an `Inspected`.
Invariant: the facts, the hash and the identity are of one and the same model, or there is no answer.
"""

import hashlib
import os
import stat
from functools import partial
from io import BufferedReader

from msgspec.structs import replace

from h2qd.gguf.errors import GgufError
from h2qd.gguf.facts import facts
from h2qd.gguf.reader import identity, read_header
from h2qd.gguf.repack import repacked_bytes
from h2qd.safetensors.errors import SafetensorsError
from h2qd.safetensors.facts import facts as folder_facts
from h2qd.safetensors.folder import Folder, open_regular, read_folder
from h2qd.safetensors.identity import identity_of
from h2qd.wire.messages import ModelFacts
from h2qd.wire.workers import Inspected
from h2qd.worker import fake
from h2qd.worker.engine import Beat, EngineError, Progress

_BLOCK_BYTES = 1024 * 1024
_CPUINFO_CHARS_MAX = 64 * 1024
"""Enough for the first processors, and all are of one kind as far as layouts go."""


def inspect_file(path: str, progress: Progress, beat: Beat) -> Inspected:
    """Facts, SHA-256 (hex) and identity of the regular file or the folder at `path`; links are followed.

    Ticks `beat` and tells `progress` for each MiB. Raises `EngineError`: file_not_found, invalid_model_file.
    """
    if os.path.isdir(path):  # noqa: PTH112 - a path as the wire gives it
        return _inspect_folder(path, progress, beat)
    with _open_regular(path) as file:
        before = os.fstat(file.fileno())
        try:
            found = _facts(file)
            file.seek(0)
            sha256 = _sha256(file, before.st_size, progress, beat)
        except GgufError as error:
            raise EngineError("invalid_model_file", str(error)) from error
        except OSError as error:
            raise EngineError(
                "invalid_model_file", f"cannot read the file: {os.strerror(error.errno or 0)}"
            ) from error
        if identity(os.fstat(file.fileno())) != identity(before):
            raise EngineError("invalid_model_file", "the file was changed while it was read")
        return Inspected(found, sha256, identity(before))


def _inspect_folder(path: str, progress: Progress, beat: Beat) -> Inspected:
    """The same of a model folder; its SHA-256 is that of its files' names and hashes, as sha256sum writes them."""
    try:
        before = identity_of(path)
        folder = read_folder(path)
        found = folder_facts(folder)
        digest = _sha256_of_all(folder, progress, beat)
        after = identity_of(path)
    except SafetensorsError as error:
        raise EngineError("invalid_model_file", str(error)) from error
    except OSError as error:
        raise EngineError("invalid_model_file", f"cannot read the folder: {os.strerror(error.errno or 0)}") from error
    if after != before:
        raise EngineError("invalid_model_file", "the folder was changed while it was read")
    return Inspected(found, digest, before)


def _sha256_of_all(folder: Folder, progress: Progress, beat: Beat) -> str:
    sizes = [(folder.path / name).stat().st_size for name in folder.files]
    total = max(1, sum(sizes))
    done = 0
    digest = hashlib.sha256()
    for name, size in zip(folder.files, sizes, strict=True):
        with open_regular(folder.path / name) as file:
            own = _sha256(file, size, partial(_tell_part, progress, done / total, size / total), beat)
        digest.update(f"{own}  {name}\n".encode())
        done += size
    return digest.hexdigest()


def _tell_part(progress: Progress, start: float, share: float, fraction: float) -> None:
    progress(min(1.0, start + fraction * share))


def _open_regular(path: str) -> BufferedReader:
    """`path` open for reading. Not blocking: the open of a fifo that nobody writes would wait for ever."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else "not a path"
        raise EngineError("file_not_found", f"cannot open the file: {reason}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise EngineError("invalid_model_file", "cannot use it as a model: it is not a regular file")
    return os.fdopen(fd, "rb")


def _facts(file: BufferedReader) -> ModelFacts:
    if fake.allowed() and fake.is_script(file):
        return fake.read_script(file).facts
    header = read_header(file)
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as cpus:  # noqa: PTH123 - bounded read
        here = repacked_bytes(header, cpus.read(_CPUINFO_CHARS_MAX))
    return replace(facts(header), repacked_bytes=here)


def _sha256(file: BufferedReader, size: int, progress: Progress, beat: Beat) -> str:
    digest = hashlib.sha256()
    block = memoryview(bytearray(_BLOCK_BYTES))
    done = 0
    while count := file.readinto(block):
        digest.update(block[:count])
        done += count
        beat.tick()
        progress(done / max(size, done))
    return digest.hexdigest()
