"""The folder of saved sessions: a file each for a session and a model, written whole or not at all, under a quota.

Several workers and the supervisor may use one folder at a time: files appear by renaming, and one that is being
written is locked. Decides which files go when room is needed: those used longest ago. What is in a file is the
caller's business, who restores it and when as well. Invariant: a session's name stands for a file that was complete
when it came, and nothing else in the folder is ever touched.
"""

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from h2qd.sessions.record import Record, RecordError, check_sha256, finish, read, record_bytes, split_key

_SUFFIX = ".session"
_TEMPORARY = ".writing"
_SHA256_CHARS = 64
_NAME = re.compile(r"[0-9]{1,10}-[a-z0-9+._-]{1,128}@[0-9a-f]{64}\.session")


class FolderError(Exception):
    """A session cannot be written; the text is for users."""


class Row(NamedTuple):
    """A saved session; `used_at` is a wall clock time in seconds."""

    name: str
    uid: int
    sha256: str
    tokens: int
    size_bytes: int
    used_at: float


class _File(NamedTuple):
    name: str
    size_bytes: int
    used_at: float


class Folder:
    """The sessions in `path`, which is made if it is missing. Raises OSError when it cannot be used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(path.stat().st_mode) != 0o700:
            path.chmod(0o700)
        self._sweep()

    def rows(self) -> list[Row]:
        """What is saved, the latest first; files that are ours and damaged are removed. Raises OSError."""
        rows = []
        for file in self._files():
            try:
                with self._opened(file.name) as descriptor:
                    record = _read_as(file.name, descriptor)
            except RecordError:
                self._unlink(file.name)
                continue
            except OSError:
                continue
            rows.append(Row(record.name, record.uid, record.sha256, record.tokens, file.size_bytes, file.used_at))
        return sorted(rows, key=lambda row: row.used_at, reverse=True)

    def total_bytes(self) -> int:
        """What all saved sessions take. Raises OSError."""
        return sum(file.size_bytes for file in self._files())

    def remove(self, key: str, sha256: str | None = None) -> tuple[int, int]:
        """Remove this session, of one model or of all: how many files and bytes. Raises OSError, RecordError."""
        beginning = file_name(key, "0" * _SHA256_CHARS if sha256 is None else sha256)
        if sha256 is None:
            beginning = beginning[: -_SHA256_CHARS - len(_SUFFIX)]
        gone = [file for file in self._files() if file.name.startswith(beginning) and self._unlink(file.name)]
        return len(gone), sum(file.size_bytes for file in gone)

    @contextlib.contextmanager
    def opened(self, key: str, sha256: str) -> Iterator[int]:
        """A descriptor of this session's file, for reading. Raises OSError, FileNotFoundError if there is none."""
        with self._opened(file_name(key, sha256)) as descriptor:
            yield descriptor

    def write(
        self, record: Record, fill: Callable[[str], int], *, expected_bytes: int, quota_bytes: int, durable: bool
    ) -> int:
        """Write the file of `record`, whose data `fill` writes to the path that it gets; the size of the file.

        `fill` says how much that was (0: it failed) and leaves `record.data_bytes` to this; `expected_bytes` of data
        are to come, for which those used longest ago make room. `durable`: also when the device loses power now.
        Raises `FolderError`; then nothing of it is left, and what was saved of this session before is still there.
        """
        name = file_name(record.key, record.sha256)
        needed = expected_bytes + record_bytes(record) + 8  # the length of the data takes more once it is known
        if needed > quota_bytes:
            raise FolderError(f"it takes {needed} bytes, all sessions may take {quota_bytes}")
        temporary = f"{name}.{os.getpid()}{_TEMPORARY}"
        try:
            self._make_room(quota_bytes - needed, name)
            descriptor = os.open(self._path / temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise FolderError(_reason(error)) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = _fill(descriptor, record, fill)
            if durable:
                os.fsync(descriptor)
            (self._path / temporary).replace(self._path / name)
            if durable:
                self._sync()
        except (OSError, RecordError) as error:
            self._unlink(temporary)
            raise FolderError(_reason(error)) from error
        except BaseException:
            self._unlink(temporary)
            raise
        finally:
            os.close(descriptor)
        return size

    def touch(self, descriptor: int) -> None:
        """The file behind `descriptor` is in use. Where that cannot be written, it counts as older than it is."""
        with contextlib.suppress(OSError):
            os.utime(descriptor)

    def _make_room(self, bytes_max: int, replaced: str) -> None:
        """Remove what was used longest ago until the others take `bytes_max` at most; `replaced` goes anyway."""
        others = [file for file in self._files() if file.name != replaced]
        total = sum(file.size_bytes for file in others)
        for file in sorted(others, key=lambda file: file.used_at):
            if total <= bytes_max:
                return
            if self._unlink(file.name):
                total -= file.size_bytes
        if total > bytes_max:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    def _files(self) -> list[_File]:
        files = []
        with os.scandir(self._path) as entries:
            for entry in entries:
                if _NAME.fullmatch(entry.name):
                    with contextlib.suppress(FileNotFoundError):
                        found = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(found.st_mode):
                            files.append(_File(entry.name, found.st_size, found.st_mtime))
        return files

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self._path / name, flags)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            yield descriptor
        finally:
            os.close(descriptor)

    def _unlink(self, name: str) -> bool:
        try:
            (self._path / name).unlink()
        except OSError:
            return False
        return True

    def _sweep(self) -> None:
        """Remove what writers left behind: a file whose writer lives is locked."""
        with os.scandir(self._path) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(_TEMPORARY)]
        for name in names:
            with contextlib.suppress(OSError), self._opened(name) as descriptor:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._unlink(name)

    def _sync(self) -> None:
        descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def file_name(key: str, sha256: str) -> str:
    """Of a session's file for a model. Raises `RecordError` at what is no key or no hash.

    Capitals are quoted, so that names that differ in case differ on every file system.
    """
    split_key(key)
    check_sha256(sha256)
    quoted = "".join(f"+{char.lower()}" if char.isupper() else char for char in key)
    return f"{quoted}@{sha256}{_SUFFIX}"


def _read_as(name: str, descriptor: int) -> Record:
    record = read(descriptor)
    if file_name(record.key, record.sha256) != name:
        raise RecordError("the record of another session")
    return record


def _fill(descriptor: int, record: Record, fill: Callable[[str], int]) -> int:
    """Data and record into an empty file; its size. Through the descriptor, whatever happens to the file's name."""
    written = fill(f"/proc/self/fd/{descriptor}")
    if written == 0 or written != os.fstat(descriptor).st_size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # a library may have no word for it
    return finish(descriptor, msgspec.structs.replace(record, data_bytes=written))


def _reason(error: OSError | RecordError) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
