"""What a slow request is doing, on stderr: a live line on a terminal, a line a phase anywhere else.

Off a terminal the phases of generation itself are left out: they say nothing that the text does not.
A `Progress` is a context manager, and callable as a client's `on_progress`.
"""

from time import monotonic
from types import TracebackType
from typing import Self

from h2qctl import text
from h2qctl.output import Output
from h2qd.wire import messages as m

_BAR_CHARS = 20
_CLEAR = "\r\x1b[K"
_LINE_CHARS_MAX = 79
"""A live line must not wrap, or it could not be taken away again."""
_GENERATING = frozenset({"prefill", "decode"})


class Progress:
    """The reports of one request. Silent when the user asked for JSON."""

    def __init__(self, out: Output) -> None:
        self._stderr = out.stderr
        self._live = out.stderr.isatty()
        self._silent = out.json
        self._began = monotonic()
        self._phase = ""
        self._drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.clear()

    def __call__(self, report: m.Progress) -> None:
        """Show `report`."""
        if self._silent:
            return
        if self._live:
            elapsed = text.duration((monotonic() - self._began) * 1000)
            self._stderr.write(_CLEAR + f"{describe(report, bar=True)}  {elapsed}"[:_LINE_CHARS_MAX])
            self._stderr.flush()
            self._drawn = True
        elif report.phase != self._phase and report.phase not in _GENERATING:
            self._stderr.write(describe(report, bar=False) + "\n")
            self._stderr.flush()
        self._phase = report.phase

    def clear(self) -> None:
        """Take the live line away, for text that follows."""
        if self._drawn:
            self._stderr.write(_CLEAR)
            self._stderr.flush()
            self._drawn = False
        self._silent = True


def describe(report: m.Progress, *, bar: bool) -> str:
    """A report in words: phase, model, place in the queue, and how far it is, where known."""
    words = [text.safe(report.phase)]
    if report.model:
        words.append(text.safe(report.model))
    if report.position is not None:
        words.append(f"(place {report.position} in the queue)")
    if report.fraction is not None and bar:
        fraction = min(max(report.fraction, 0.0), 1.0)
        full = round(fraction * _BAR_CHARS)
        words.append(f"[{'#' * full}{'.' * (_BAR_CHARS - full)}] {fraction:4.0%}")
    return " ".join(words)
