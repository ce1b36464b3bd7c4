"""The output of a batch, and what of it is there already.

One JSON object a line, in the order in which they end: `{"line", "id", "input", "ok", "answer" or "error"}`, where
`input` is the hash of the line that was answered. Each is added with one write, so that a kill leaves whole lines
and at most one torn one, which the next run cuts off. A file that is not the output of this very input is refused
and left as it is. Invariant: one process at a time adds to it, and no line of the input is in it twice.
"""

import contextlib
import fcntl
import os
import stat
from types import TracebackType
from typing import Annotated, BinaryIO, NamedTuple, Self

import msgspec

from h2qctl.batch.source import Source
from h2qctl.errors import H2qError
from h2qd.wire import messages as m
from h2qd.wire.names import shown

ROW_BYTES_MAX = 64 * 1024 * 1024
"""The longest line that a reply of the most bytes can become."""

_BEGIN = b'{"line":'
_OK, _FAILED = 1, 2


class _Answered(msgspec.Struct):
    line: int
    id: str | None
    input: str
    ok: bool
    answer: m.Answer | m.Embeddings


class _Failed(msgspec.Struct):
    line: int
    id: str | None
    input: str
    ok: bool
    error: m.ErrorReply


class _Row(msgspec.Struct):
    """As much of a line as says what it is about."""

    line: Annotated[int, msgspec.Meta(ge=1)]
    input: str
    ok: bool


_decoder = msgspec.json.Decoder(_Row)


class Past(NamedTuple):
    """What an output holds: a mark for each line of the input, their counts, and how many bytes are whole lines."""

    marks: bytearray
    ok: int
    failed: int
    whole_bytes: int

    def done(self, number: int) -> bool:
        """Whether this line of the input has been answered, or has failed."""
        return self.marks[number - 1] != 0

    def answered(self, number: int) -> bool:
        """Whether this line of the input has been answered."""
        return self.marks[number - 1] == _OK


def past(path: str, source: Source) -> Past:
    """What the file at `path` holds, without touching it. Raises `H2qError` when it is not an output of `source`."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123  # the path as the user wrote it
            return _scan(file, path, source)
    except FileNotFoundError:
        return Past(bytearray(source.last), 0, 0, 0)
    except (OSError, ValueError) as error:
        raise _unusable(path, str(error), "name another output") from None


class Journal:
    """The output at `path`, made if need be. `anew`: lines that failed are taken out, to be run again."""

    def __init__(self, path: str, source: Source, *, anew: bool = False) -> None:
        self.path = path
        self._source = source
        self._unsynced = False
        self._file = _opened(path)
        try:
            self.past = _scan(self._file, path, source)
            if anew and self.past.failed:
                self._take_failed_out()
            elif self.past.whole_bytes < os.fstat(self._file.fileno()).st_size:
                os.ftruncate(self._file.fileno(), self.past.whole_bytes)
        except OSError as error:
            self._file.close()
            raise _unwritten(path, error) from None
        except BaseException:
            self._file.close()
            raise
        self._size = self.past.whole_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            os.fsync(self._file.fileno())
        self._file.close()

    def answered(self, number: int, name: str | None, answer: m.Answer | m.Embeddings) -> None:
        """Add what line `number` of the input was answered. Raises `H2qError` (state_not_written)."""
        self._add(_Answered(number, name, self._source.digest(number), ok=True, answer=answer))

    def failed(self, number: int, name: str | None, error: m.ErrorReply) -> None:
        """Add why line `number` of the input was not answered. Raises `H2qError` (state_not_written)."""
        self._add(_Failed(number, name, self._source.digest(number), ok=False, error=error))

    def sync(self) -> None:
        """Have the disk keep what was added. May take long, and may be called from another thread."""
        if self._unsynced:
            self._unsynced = False
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise _unwritten(self.path, error) from None

    def _add(self, row: msgspec.Struct) -> None:
        data = msgspec.json.encode(row) + b"\n"
        fd = self._file.fileno()
        try:
            written = os.write(fd, data)
            if written < len(data):  # what came of it must not stand before the next line
                os.ftruncate(fd, self._size)
        except OSError as error:
            raise _unwritten(self.path, error) from None
        if written < len(data):
            raise _unwritten(self.path, OSError("there is no room for a whole line"))
        self._size += len(data)
        self._unsynced = True

    def _take_failed_out(self) -> None:
        """Put a file without the failed lines into the place of this one."""
        new = f"{self.path}.new"
        fresh = _opened(new, os.O_TRUNC)
        try:
            self._file.seek(0)
            size = 0
            while size < self.past.whole_bytes:
                line = self._file.readline(ROW_BYTES_MAX)
                size += len(line)
                if _decoder.decode(line).ok:
                    fresh.write(line)
            fresh.flush()
            os.fsync(fresh.fileno())
            os.replace(new, self.path)  # noqa: PTH105  # the paths as the user wrote them
        except BaseException:
            fresh.close()
            raise
        self._file.close()
        self._file = fresh
        marks = self.past.marks
        for at, mark in enumerate(marks):
            if mark == _FAILED:
                marks[at] = 0
        self.past = Past(marks, self.past.ok, 0, fresh.tell())


def _opened(path: str, flags: int = 0) -> BinaryIO:
    """The file, for this process alone."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | flags, 0o666)
    except (OSError, ValueError) as error:
        raise _unusable(path, str(error), "name a file that can be written") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _unusable(path, "it is no plain file", "name a file; it can be followed with tail -f")
    if not _locked(fd):
        os.close(fd)
        text = f"cannot write {shown(path)}: another h2qctl batch does"
        raise H2qError("in_use", text, "wait for it to end, or name another output")
    return os.fdopen(fd, "r+b")


def _locked(fd: int) -> bool:
    """Take the lock, unless another process has it, or has just put another file into the place of this one."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return os.fstat(fd).st_nlink > 0


def _scan(file: BinaryIO, path: str, source: Source) -> Past:
    """Read an output from its beginning. Raises `H2qError` unless each line of it answers one of the input."""
    marks = bytearray(source.last)
    counts = {_OK: 0, _FAILED: 0}
    whole_bytes = row_number = 0
    while line := file.readline(ROW_BYTES_MAX):
        row_number += 1
        if not line.endswith(b"\n"):
            if not _BEGIN.startswith(line[: len(_BEGIN)]) or len(line) == ROW_BYTES_MAX:
                raise _unusable(path, f"line {row_number} is not a batch's", "name another output")
            break  # torn: the run that wrote it was killed
        try:
            row = _decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise _unusable(path, f"line {row_number} is not a batch's", "name another output") from None
        if not source.has(row.line) or source.digest(row.line) != row.input:
            text = f"its line {row_number} answers another line {row.line} than {shown(source.path)} has"
            raise _unusable(path, text, "name another output: this one belongs to another input")
        if marks[row.line - 1]:
            raise _unusable(path, f"line {row.line} of the input is in it twice", f"take line {row_number} out of it")
        mark = _OK if row.ok else _FAILED
        marks[row.line - 1] = mark
        counts[mark] += 1
        whole_bytes += len(line)
    return Past(marks, counts[_OK], counts[_FAILED], whole_bytes)


def _unusable(path: str, why: str, fix: str) -> H2qError:
    return H2qError("invalid_request", f"cannot go on with {shown(path)}: {shown(why)}", fix)


def _unwritten(path: str, error: OSError) -> H2qError:
    text = f"cannot write {shown(path)}: {shown(str(error))}"
    return H2qError("state_not_written", text, "make room; the same command then goes on where it stopped")
