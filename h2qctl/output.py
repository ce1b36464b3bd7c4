"""Where a verb's words go: data to stdout, everything else to stderr, as text or as the daemon's own JSON.

With `--json` a verb prints the daemon's reply untouched, as one object; a stream prints one object a line,
`{"chunk": ...}` for each chunk and `{"reply": ...}` for its end; an error is one object on stderr. Colour and
shortened columns are for terminals only. Callers: the verbs and `__main__`.
"""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TextIO, TypeVar

import msgspec

from h2qctl import text
from h2qctl.errors import H2qError
from h2qd.wire.frames import Kind

TABLE_WIDTH_MAX = 80
Value = TypeVar("Value")
_BOLD_RED = "\x1b[1;31m"
_DIM = "\x1b[2m"
_PLAIN = "\x1b[0m"


class Output:
    """One run's output. `json` and `wide` are the user's wishes; `width` bounds table lines, None for not at all."""

    def __init__(self, *, json: bool, wide: bool, stdout: TextIO | None = None, stderr: TextIO | None = None) -> None:
        self.json = json
        self.wide = wide
        self.stdout = stdout or sys.stdout
        self.stderr = stderr or sys.stderr
        self.terminal = self.stdout.isatty()
        self.width = self._width() if self.terminal and not wide else None
        self.streaming = False
        self._reply = b""

    def take(self, kind: Kind, body: bytes) -> None:
        """See a body as the daemon sent it: replies are kept for `reply`, chunks of a stream are passed on."""
        if kind is Kind.REPLY:
            self._reply = body
        if self.json and self.streaming and kind in (Kind.CHUNK, Kind.REPLY):
            self.line(f'{{"{kind}":{as_json(body)}}}')

    def reply(self, value: Value, lines: Callable[[Value], Iterable[str]]) -> None:
        """Show a reply: untouched with `--json`, else by `lines`."""
        if self.json:
            self.line(as_json(self._reply))
        else:
            for line in lines(value):
                self.line(line)

    def checks(self, own: Sequence[msgspec.Struct]) -> str:
        """The checks of this side before those in the daemon's reply, if there was one, as one JSON object."""
        said = msgspec.msgpack.decode(self._reply)["checks"] if self._reply else []
        return msgspec.json.encode({"checks": [*own, *said]}).decode()

    def line(self, line: str) -> None:
        """One line of data."""
        self.stdout.write(line + "\n")
        self.stdout.flush()

    def piece(self, piece: str) -> None:
        """A piece of generated text, at once; made harmless where a terminal would obey it."""
        self.stdout.write(text.answer(piece) if self.terminal else piece)
        self.stdout.flush()

    def thought(self, piece: str) -> None:
        """A piece of what a model thinks, dim: only for where it can be told from the answer, see `dims`."""
        self.stdout.write(f"{_DIM}{text.answer(piece)}{_PLAIN}")
        self.stdout.flush()

    @property
    def dims(self) -> bool:
        """Whether text can be dim: on a terminal that wants more than plain letters."""
        return coloured(self.stdout)

    def note(self, line: str) -> None:
        """One line that is not data."""
        self.stderr.write(line + "\n")
        self.stderr.flush()

    def error(self, error: H2qError) -> int:
        """Say why, with the facts and the fix; the exit status for it."""
        if self.json:
            self.note(msgspec.json.encode(error.reply).decode())
            return error.exit_status
        label = f"error[{text.safe(error.code)}]:"
        if coloured(self.stderr):
            label = f"{_BOLD_RED}{label}{_PLAIN}"
        self.note(f"{label} {text.safe(error.message)}")
        for fact in error.because:
            self.note(f"  because: {text.safe(fact)}")
        if error.hint:
            self.note(f"  fix: {text.safe(error.hint)}")
        return error.exit_status

    def paint(self, line: str, colour: str) -> str:
        """A line of data in `colour`, an escape sequence, where the reader wants colours."""
        return f"{colour}{line}{_PLAIN}" if colour and coloured(self.stdout) else line

    def _width(self) -> int:
        try:
            return min(os.get_terminal_size(self.stdout.fileno()).columns or TABLE_WIDTH_MAX, TABLE_WIDTH_MAX)
        except OSError:
            return TABLE_WIDTH_MAX


def coloured(stream: TextIO) -> bool:
    """Whether what goes to `stream` may have colours."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def as_json(body: bytes) -> str:
    """A msgpack body as JSON, with every key that it has, known here or not."""
    return msgspec.json.encode(msgspec.msgpack.decode(body)).decode()
