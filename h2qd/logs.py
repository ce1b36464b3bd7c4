"""Logs: structlog set up once; one bounded line an event to standard error, as JSON or words.

Event names are constants, noun.verb; data are fields. A line never raises into the daemon and never makes it wait:
one that cannot be written at once is dropped and counted, and the next that gets through tells how many were.
Other modules take loggers from `get_logger` here, never from structlog: its import is guarded below.
"""

import json
import logging
import math
import os
import select
import sys
import traceback
from collections.abc import Callable
from typing import Any, cast

# structlog imports rich where it is installed, for tracebacks that are not used here, at 4.8 MB. None in
# `sys.modules` makes that import fail, as structlog expects it may; whoever else wants rich can have it afterwards.
_rich_barred = "rich" not in sys.modules
if _rich_barred:
    sys.modules["rich"] = None  # type: ignore[assignment]  # the documented way to bar an import
import structlog  # noqa: E402 - after the bar
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger  # noqa: E402 - after the bar

if _rich_barred:
    del sys.modules["rich"]

from h2qd.wire.names import shown  # noqa: E402 - after the bar

LINE_BYTES_MAX = 4096
"""PIPE_BUF: a pipe that polls writable takes this much at once, and whole."""

_TEXT_CHARS_MAX = 1024
_ITEMS_MAX = 16
_SHORTEST_CHARS = 32
_CLIPPED = "…"


def configure(level: str, form: str, descriptor: int = 2) -> None:
    """Send lines of `level` (debug, info, warning, error) and above to `descriptor`.

    `form`: json, console, or auto, which is console on a terminal and json elsewhere. The standard library's loggers
    (asyncio reports lost exceptions there) come out as `library.log`.
    """
    console = form == "console" or (form == "auto" and os.isatty(descriptor))
    threshold = logging.getLevelNamesMapping()[level.upper()]
    output = _Output(descriptor)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            output.add_lost,
            render_console if console else render_json,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: output,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Forward()]
    root.setLevel(max(threshold, logging.WARNING))


def get_logger(**fields: Any) -> FilteringBoundLogger:
    """A logger whose lines carry `fields`."""
    return cast("FilteringBoundLogger", structlog.get_logger(**fields))


# --- events to lines --------------------------------------------------------------------------------


def render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """One JSON object, all ASCII, so that no value can end the line or reach a terminal unescaped."""
    return _fitted(_ordered(event), json.dumps)


def render_console(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """Time, level, event and `key=value` pairs, then the traceback if there is one; control characters escaped."""
    return _fitted(_ordered(event), _words)


def _ordered(event: EventDict) -> dict[str, Any]:
    """Plain values, what every line has first, and the exception as text last."""
    given = event.pop("exc_info", None)
    error = sys.exc_info()[1] if given is True else given[1] if isinstance(given, tuple) else given
    fields = {**{key: event.pop(key, "") for key in ("at", "level", "event")}, **event}
    if isinstance(error, BaseException):
        # The end says what happened where; the beginning is the event loop.
        fields["exception"] = "".join(traceback.format_exception(error))[-_TEXT_CHARS_MAX:]
    return {key: _plain(value) for key, value in fields.items()}


def _plain(value: Any) -> Any:
    """`value` as something every JSON reader has; whatever it is, it does not raise and is not long."""
    if isinstance(value, list | tuple):
        return [_plain_one(item) for item in value[:_ITEMS_MAX]]
    return _plain_one(value)


def _plain_one(value: Any) -> str | float | None:
    if value is None or (isinstance(value, int) and value.bit_length() < 64):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    try:
        text = str(value)
    except Exception:  # noqa: BLE001 - a field that cannot be shown must not stop what it reports on
        return f"<{type(value).__name__} without a text>"
    return text if len(text) <= _TEXT_CHARS_MAX else text[:_TEXT_CHARS_MAX] + _CLIPPED


def _words(fields: dict[str, Any]) -> str:
    rest = dict(fields)
    at, level, name, trace = (str(rest.pop(key, "")) for key in ("at", "level", "event", "exception"))
    pairs = "".join(f" {shown(key)}={shown(str(value), _TEXT_CHARS_MAX)}" for key, value in rest.items())
    lines = "".join(f"\n    {shown(line, _TEXT_CHARS_MAX)}" for line in trace.splitlines())
    return f"{at} {level:<7} {shown(name)}{pairs}{lines}"


def _fitted(fields: dict[str, Any], render: Callable[[dict[str, Any]], str]) -> str:
    """The line of `fields`, its longest texts cut until it fits `LINE_BYTES_MAX` with its end."""
    line = render(fields)
    while len(_encoded(line)) > LINE_BYTES_MAX:
        longest = max(fields, key=lambda key: len(str(fields[key])))
        text = str(fields[longest])
        if len(text) <= _SHORTEST_CHARS:  # too many fields rather than too long ones
            return render({key: fields[key] for key in ("at", "level", "event")} | {"clipped": True})
        fields = fields | {longest: text[: len(text) // 2] + _CLIPPED}
        line = render(fields)
    return line


def _encoded(line: str) -> bytes:
    return line.encode("utf-8", "backslashreplace") + b"\n"


# --- lines to the descriptor ------------------------------------------------------------------------


class _Output:
    """The end of structlog's chain: writes lines to a descriptor, or counts them as lost."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lost = 0

    def add_lost(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """A processor: `lost` lines before this one."""
        return {**event, "lost": self._lost} if self._lost else event

    def write(self, line: str) -> None:
        """Write `line` if that does not block. Raises nothing: there is nobody left to tell."""
        try:
            poll = select.poll()
            poll.register(self._descriptor, select.POLLOUT)
            ready = any(events & select.POLLOUT for _, events in poll.poll(0))
            if ready and os.write(self._descriptor, _encoded(line)):
                self._lost = 0
                return
        except OSError:  # EPIPE, ENOSPC, EIO, EBADF
            pass
        self._lost += 1

    debug = info = warning = error = critical = write


class _Forward(logging.Handler):
    """Lines of the standard library's loggers, into the same output."""

    def emit(self, record: logging.LogRecord) -> None:
        """Pass `record` on."""
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - a library's wrong format string is no reason to lose its line
            message = str(record.msg)
        log = get_logger()
        write = log.error if record.levelno >= logging.ERROR else log.warning
        write("library.log", logger=record.name, message=message, exc_info=record.exc_info)
