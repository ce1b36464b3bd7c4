"""Logs: structlog set up once, one bounded line an event to standard error, JSON or words.

Event names are constants, noun.verb; data are fields. A line never raises into the daemon and never makes it
wait: what cannot be written at once is counted, and the count stands in the next line that gets through.
Other modules take loggers from `get_logger` here, never from structlog: its import is guarded below.
"""

import json
import logging
import os
import select
import sys
import traceback
from typing import Any, Protocol, cast

# structlog imports rich when it can, for tracebacks that are not used here: 4.8 MB. None in `sys.modules` makes that
# import fail, which structlog expects; whoever else wants rich may have it afterwards.
_rich_was_absent = "rich" not in sys.modules
if _rich_was_absent:
    sys.modules["rich"] = None  # type: ignore[assignment] - None is the documented way to bar an import
import structlog  # noqa: E402 - must come after the bar

if _rich_was_absent:
    del sys.modules["rich"]

from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger  # noqa: E402 - the same

from h2qd.wire.names import shown  # noqa: E402 - the same

LINE_BYTES_MAX = 4096
"""PIPE_BUF: a pipe that polls writable takes so much at once, whole."""

_FIELD_CHARS_MAX = 1024
_CONSOLE_EVENT_WIDTH = 24


class _Renderer(Protocol):
    """A structlog processor that ends the chain."""

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> str: ...


def configure(level: str, form: str, descriptor: int = 2) -> None:
    """Send the lines of `level` (debug, info, warning, error) and above to `descriptor`, as JSON or words.

    `form`: json, console, or auto, which is console on a terminal. The standard library's loggers (asyncio
    reports lost exceptions there) come out as `library.log`.
    """
    console = form == "console" or (form == "auto" and os.isatty(descriptor))
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            _name_exception,
            _render_console if console else _render_json,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=_Factory(_Line(descriptor)),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Forward()]
    root.setLevel(max(threshold, logging.WARNING))


def get_logger(**fields: Any) -> FilteringBoundLogger:
    """A logger whose lines carry `fields`."""
    return cast(FilteringBoundLogger, structlog.get_logger(**fields))


# --- rendering: pure --------------------------------------------------------------------------------


def _name_exception(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """`exc_info` (True, an exception, or a triple) as the text of its traceback, in `exception`."""
    given = event.pop("exc_info", None)
    error = given if isinstance(given, BaseException) else sys.exc_info()[1] if given is True else None
    if isinstance(given, tuple):
        error = given[1]
    if error is not None:
        # The end of a traceback says what happened; the beginning is the event loop.
        event["exception"] = "".join(traceback.format_exception(error))[-_FIELD_CHARS_MAX:]
    return event
