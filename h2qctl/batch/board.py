"""How far a batch is, on stderr: a live line on a terminal, else a line now and then; nothing with `--json`."""

from time import monotonic

from h2qctl import text
from h2qctl.output import Output

_BAR_CHARS = 16
_BAR_CHARS_MIN = 4
_CLEAR = "\r\x1b[K"
_LINE_CHARS_MAX = 79
_LIVE_S = 0.2
_PLAIN_S = 10.0


class Board:
    """The counts of one run. `total` and `before` are all lines of the input, and those done in earlier runs."""

    def __init__(self, out: Output, total: int, before: int) -> None:
        self.done = before
        self.failed = 0
        self.tokens = 0
        self._stderr = out.stderr
        self._live = out.stderr.isatty()
        self._silent = out.json
        self._total = total
        self._before = before
        self._model = ""
        self._waiting = False
        self._began = self._told = monotonic()

    @property
    def elapsed_s(self) -> float:
        """How long this run takes already."""
        return monotonic() - self._began

    def model(self, name: str) -> None:
        """The lines of this model are next."""
        self._model = name
        self._tell()

    def line(self, tokens: int, *, ok: bool) -> None:
        """A line has been answered, in so many tokens, or has failed."""
        self.done += 1
        self.failed += not ok
        self.tokens += tokens
        if monotonic() - self._told >= (_LIVE_S if self._live else _PLAIN_S):
            self._tell()

    def waiting(self, *, away: bool) -> None:
        """The daemon is away, or is back."""
        if away != self._waiting:
            self._waiting = away
            self._tell()

    def close(self) -> None:
        """Take the live line away."""
        if self._live and not self._silent:
            self._write(_CLEAR)

    def words(self) -> str:
        """The line: lines done, failed, speeds of this run, time left, and what is at work."""
        elapsed_s = max(self.elapsed_s, 1e-3)
        new = self.done - self._before
        parts = [f"{self.done}/{self._total}"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if new:
            left_ms = (self._total - self.done) * elapsed_s / new * 1000
            parts += [f"{new / elapsed_s:.1f} lines/s", f"{self.tokens / elapsed_s:.1f} tokens/s"]
            parts.append(f"{text.duration(left_ms)} left")
        parts.append("waiting for the daemon" if self._waiting else text.safe(self._model))
        return "  ".join(parts)

    def _bar(self, room: int) -> str:
        """The share that is done, drawn where there is room for it."""
        chars = min(room - len("[] "), _BAR_CHARS)
        if chars < _BAR_CHARS_MIN:
            return ""
        full = round(chars * self.done / self._total) if self._total else chars
        return f"[{'#' * full}{'.' * (chars - full)}] "

    def _tell(self) -> None:
        self._told = monotonic()
        if self._silent:
            return
        words = self.words()
        if self._live:
            self._write(_CLEAR + (self._bar(_LINE_CHARS_MAX - len(words)) + words)[:_LINE_CHARS_MAX])
        else:
            self._write(words + "\n")

    def _write(self, words: str) -> None:
        self._stderr.write(words)
        self._stderr.flush()
