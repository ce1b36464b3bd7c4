"""The input of a batch: where its lines begin, which model each is for, and in which order they run.

The file is read once for that, and once more line by line as they run; in memory are some 20 bytes a line. A line
is known by a hash, kept beside its answer, so that an output is never gone on with for another input, and an input
that changes under the run is noticed. Empty lines are none. Callers: `journal`, `runner` and the verb.
"""

import stat
from array import array
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Annotated, BinaryIO, NamedTuple, Self

import msgspec

from h2qctl.batch.jobs import LINE_BYTES_MAX
from h2qctl.errors import H2qError
from h2qd.wire.limits import NAME_CHARS_MAX
from h2qd.wire.names import shown

LINES_MAX = 10_000_000
_PIECE_BYTES = 1 << 20
_EMPTY, _BAD = 0, 1
_ModelName = Annotated[str, msgspec.Meta(max_length=NAME_CHARS_MAX)]


class _Body(msgspec.Struct):
    model: _ModelName | None = None


class _Head(msgspec.Struct):
    """As much of a line as its place in the order depends on."""

    model: _ModelName | None = None
    body: _Body | None = None


class Group(NamedTuple):
    """The lines for one model, by number. No model: lines that cannot be read, which need none."""

    model: str | None
    lines: Sequence[int]


_decoder = msgspec.json.Decoder(_Head)


class Source:
    """The lines of the file at `path`, numbered from 1; `model` is for those that name none.

    Raises `H2qError` (invalid_request) when it is no file of lines.
    """

    def __init__(self, path: str, model: str | None = None) -> None:
        self.path = path
        self._offsets = array("Q")
        self._digests = array("Q")
        self._models = array("I")
        self._names: dict[str | None, int] = {}
        self._default = model
        self._file = self._opened()
        try:
            self._index()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def last(self) -> int:
        """The number of the last line."""
        return len(self._offsets)

    @property
    def lines(self) -> int:
        """How many lines there are that are not empty."""
        return self.last - self._models.count(_EMPTY)

    def numbers(self) -> Iterator[int]:
        """The numbers of the lines that are not empty."""
        return (number for number, where in enumerate(self._models, 1) if where != _EMPTY)

    def has(self, number: int) -> bool:
        """Whether there is a line of this number that is not empty."""
        return 0 < number <= self.last and self._models[number - 1] != _EMPTY

    def digest(self, number: int) -> str:
        """What a line is known by: 64 bits of its hash."""
        return f"{self._digests[number - 1]:016x}"

    def read(self, number: int) -> bytes:
        """A line, or the first bytes of one that is too long. Raises `H2qError` when it changed."""
        self._file.seek(self._offsets[number - 1])
        line = self._file.readline(LINE_BYTES_MAX + 2).removesuffix(b"\n")
        if len(line) <= LINE_BYTES_MAX and _digest(line) != self._digests[number - 1]:
            message = f"cannot go on: line {number} of {shown(self.path)} is not what it was when the run began"
            raise H2qError("invalid_request", message, "do not change the input of a batch while it runs")
        return line

    def groups(self, wanted: Iterable[int], active: str | None, resident: Sequence[str]) -> list[Group]:
        """The `wanted` lines by model, so that each model is made resident once.

        Unreadable lines come first, since they cost nothing; then the active model, for which the unnamed lines are,
        the resident ones, and the others in the order in which they are named. Raises `H2qError` (no_active_model).
        """
        names = {where: name if name is not None else active for name, where in self._names.items()}
        unreadable = array("Q")
        found: dict[str, array[int]] = {}
        for number in wanted:
            where = self._models[number - 1]
            if where == _BAD:
                unreadable.append(number)
                continue
            name = names[where]
            if name is None:
                text = f"cannot tell which model line {number} is for: it names none, and none is active"
                raise H2qError("no_active_model", text, "h2qctl batch --model MODEL, or h2qctl load MODEL")
            found.setdefault(name, array("Q")).append(number)
        held = {name: rank for rank, name in enumerate(dict.fromkeys([active, *resident]))}
        ranked = sorted(found, key=lambda name: held.get(name, len(held)))
        first = [Group(None, unreadable)] if unreadable else []
        return first + [Group(name, found[name]) for name in ranked]

    def _opened(self) -> BinaryIO:
        try:
            file = Path(self.path).open("rb")  # noqa: SIM115  # it is closed with the source
        except (OSError, ValueError) as error:
            text = f"cannot read {shown(self.path)}: {shown(str(error))}"
            raise H2qError("invalid_request", text, "name a file of JSON lines") from None
        if not stat.S_ISREG(Path(self.path).stat().st_mode):
            file.close()
            text = f"cannot take {shown(self.path)}: it is read twice, so it must be a plain file"
            raise H2qError("invalid_request", text, "write the lines to a file first")
        return file

    def _index(self) -> None:
        """The first reading."""
        offset = 0
        while line := self._file.readline(_PIECE_BYTES):
            if len(self._offsets) == LINES_MAX:
                text = f"cannot take {shown(self.path)}: it has more than {LINES_MAX} lines"
                raise H2qError("too_large", text, "split it")
            begin, offset = offset, offset + len(line)
            if not line.endswith(b"\n") and len(line) == _PIECE_BYTES:
                line, digest, size = self._long(line)
                offset = begin + size
            else:
                line = line.removesuffix(b"\n")
                digest = _digest(line)
            self._offsets.append(begin)
            self._digests.append(digest)
            self._models.append(self._owner(line))

    def _long(self, line: bytes) -> tuple[bytes, int, int]:
        """The rest of a long line: as much of it as may be of use, its hash, and its size with its end."""
        hashed = blake2b(digest_size=8)
        pieces: list[bytes] = []
        size = kept = 0
        piece = line
        while piece:
            size += len(piece)
            ended = piece.endswith(b"\n")
            piece = piece.removesuffix(b"\n")
            hashed.update(piece)
            if kept <= LINE_BYTES_MAX:
                pieces.append(piece)
                kept += len(piece)
            if ended:
                break
            piece = self._file.readline(_PIECE_BYTES)
        return b"".join(pieces), int.from_bytes(hashed.digest()), size

    def _owner(self, line: bytes) -> int:
        """The number of the model that a line is for."""
        if not line.strip():
            return _EMPTY
        if len(line) > LINE_BYTES_MAX:
            return _BAD
        try:
            head = _decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _BAD
        name = head.model or (head.body.model if head.body else None) or self._default
        return self._names.setdefault(name, len(self._names) + _BAD + 1)


def _digest(line: bytes) -> int:
    return int.from_bytes(blake2b(line, digest_size=8).digest())
