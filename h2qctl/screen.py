"""A whole terminal drawn over and over, and left as it was found: what `h2qctl top` shows itself on.

Between `open` and `close` it has a screen of its own, without cursor and wrapping, and keys come unbuffered. A
frame overwrites the last one in one write, so nothing flickers. The signals that a screen must answer (a new size,
Ctrl-Z) are noted in a pipe and answered between frames. Invariant: once closed, or stopped by Ctrl-Z, the terminal
is as before, however the run ends, short of SIGKILL. Off the main thread it does not work: signals are needed.
"""

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

from h2qctl.output import TABLE_WIDTH_MAX, Output

_TAKE = b"\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[H\x1b[2J"
_GIVE_BACK = b"\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME = "\x1b[H"
_END_LINE = "\x1b[K"
_END_SCREEN = "\x1b[J"
_ROWS_UNKNOWN = 24
_READ_MAX = 256


class Screen:
    """The terminal of `out`; keys are read from standard input when that is a terminal too."""

    def __init__(self, out: Output) -> None:
        self._fd = out.stdout.fileno()
        self._encoding = out.stdout.encoding
        self._keys = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        self._was: list[Any] | None = None if self._keys is None else termios.tcgetattr(self._keys)
        self._handlers: dict[int, Any] = {}
        self._signals, self._note = os.pipe()
        self._taken = False

    def open(self) -> None:
        """Take the terminal."""
        os.set_blocking(self._note, False)
        signal.set_wakeup_fd(self._note, warn_on_full_buffer=False)
        for number in (signal.SIGWINCH, signal.SIGTSTP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, lambda *_: None)
        self._take()

    def close(self) -> None:
        """Give the terminal back. A second Ctrl-C does not come in between."""
        impatient = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._give_back()
            signal.set_wakeup_fd(-1)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            self._handlers.clear()
            os.close(self._signals)
            os.close(self._note)
        finally:
            signal.signal(signal.SIGINT, impatient)

    def show(self, lines: Callable[[int], Iterable[str]], seconds: float) -> bool:
        """Show what `lines` says for a width, for so long, also when the size changes. False: the user left."""
        until = monotonic() + seconds
        try:
            while True:
                columns, rows = self._size()
                self._draw(list(lines(min(columns, TABLE_WIDTH_MAX))), rows)
                ending = self._wait(until)
                if ending is not None:
                    return ending
        except OSError:
            return False  # the terminal is gone, and nobody looks

    def _wait(self, until: float) -> bool | None:
        """True when it is time for the next frame, False when the user left, None to draw this one again."""
        sources = [self._signals] if self._keys is None else [self._signals, self._keys]
        while (left := until - monotonic()) > 0:
            ready, _, _ = select.select(sources, [], [], left)
            if self._signals in ready:
                noted = os.read(self._signals, _READ_MAX)
                if signal.SIGTSTP in noted:
                    self._stop()
                return None
            if self._keys is not None and self._keys in ready:
                typed = os.read(self._keys, _READ_MAX)
                if not typed or b"q" in typed.lower():
                    return False
        return True

    def _stop(self) -> None:
        """Stop as Ctrl-Z would have, on a terminal that others can use; go on when continued."""
        self._give_back()
        ours = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, ours)
        self._take()

    def _take(self) -> None:
        self._taken = True
        if self._keys is not None:
            tty.setcbreak(self._keys, termios.TCSANOW)
        self._write(_TAKE)

    def _give_back(self) -> None:
        if not self._taken:
            return
        with contextlib.suppress(OSError, termios.error):  # a terminal that is gone needs nothing
            self._write(_GIVE_BACK)
        if self._keys is not None and self._was is not None:
            with contextlib.suppress(OSError, termios.error):
                termios.tcsetattr(self._keys, termios.TCSADRAIN, self._was)
        self._taken = False

    def _draw(self, lines: list[str], rows: int) -> None:
        """One frame: as many lines as there are rows, the last of which tells how to leave."""
        room = max(rows - 1, 0)
        below = f"; {len(lines) - room} lines more" if len(lines) > room else ""
        shown = [*lines[:room], f"q leaves{below}"]
        frame = _HOME + f"{_END_LINE}\r\n".join(shown) + _END_LINE + _END_SCREEN
        self._write(frame.encode(self._encoding, "backslashreplace"))

    def _write(self, data: bytes) -> None:
        """All of `data`, past Python's buffers: what a dead terminal refused must not be tried again at exit."""
        while data:
            data = data[os.write(self._fd, data) :]

    def _size(self) -> tuple[int, int]:
        size = os.get_terminal_size(self._fd)
        return size.columns or TABLE_WIDTH_MAX, size.lines or _ROWS_UNKNOWN
