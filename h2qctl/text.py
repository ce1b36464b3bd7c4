"""Values as people read them: sizes, durations, times, counts; and text from elsewhere made safe to show.

Pure. Everything a daemon or a model file said goes through `safe` or `answer` before it meets a terminal:
a name or an answer may carry escape sequences. Callers: tables, progress, output and the verbs.
"""

import time

from h2qd.wire.names import shown

NONE = "<none>"
_CELL_CHARS_MAX = 4096
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_BIDI = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))


def safe(value: object) -> str:
    """`value` on one line, with nothing in it that a terminal would obey."""
    return shown(str(value), _CELL_CHARS_MAX)


def answer(text: str) -> str:
    """Generated text for a terminal: lines and tabs stay, escapes and overrides of direction are spelled out."""
    if text.isprintable():
        return text
    return "".join(c if _harmless(c) else c.encode("unicode_escape").decode("ascii") for c in text)


def _harmless(c: str) -> bool:
    return c in "\n\t" or (ord(c) >= 0x20 and not 0x7F <= ord(c) < 0xA0 and c not in _BIDI)


def size(size_bytes: int | None) -> str:
    """Bytes in powers of 1024, e.g. `3.1 GiB`; `<none>` for None."""
    if size_bytes is None:
        return NONE
    value, unit = float(size_bytes), 0
    while abs(value) >= 1023.95 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 or value >= 99.95 else f"{value:.1f} {_UNITS[unit]}"


def difference(size_bytes: int) -> str:
    """A difference between sizes, with its sign, e.g. `+12.0 MiB`."""
    return f"{'-' if size_bytes < 0 else '+'}{size(abs(size_bytes))}"


def count(number: int) -> str:
    """A count of parameters, e.g. `268M` or `7.6B`; `<none>` for 0."""
    if number <= 0:
        return NONE
    for unit, scale in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= scale:
            value = number / scale
            return f"{value:.1f}{unit}" if value < 9.95 else f"{value:.0f}{unit}"
    return str(number)


def duration(ms: float | None) -> str:
    """Milliseconds, coarser the longer they are: `450ms`, `3.2s`, `3m05s`, `2h10m`, `5d03h`."""
    if ms is None:
        return NONE
    if ms < 999.5:
        return f"{ms:.0f}ms"
    if ms < 59_950:
        return f"{ms / 1000:.1f}s"
    minutes, seconds = divmod(round(ms / 1000), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02}h"
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"


def moment(at_ms: int) -> str:
    """A wall-clock time in this place's zone, to the second, as RFC 3339 writes it."""
    at = time.localtime(at_ms / 1000)
    zone = time.strftime("%z", at)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', at)}{zone[:3]}:{zone[3:]}"


def several(number: int, noun: str) -> str:
    """A number of things, e.g. `1 turn` or `3 turns`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def yes(flag: bool) -> str:
    """A flag in words."""
    return "yes" if flag else "no"
