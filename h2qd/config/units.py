"""Sizes, durations and file modes as people write them, to numbers and back. Pure.

Sizes become bytes (int), durations seconds (float, whole milliseconds), modes permission bits (int).
Every `parse_` raises `ValueError` with words that complete "cannot use VALUE: ..."; every `show_` gives the
shortest exact text, and `parse_x(show_x(v)) == v`. Ranges are the business of `kinds`.
"""

import re
from decimal import Decimal

import msgspec

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)")
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?(ms|s|m|h)")
_PERCENT = re.compile(r"([0-9]{1,3}) ?%")
_MODE = re.compile(r"(?:0o|0)?([0-7]{1,4})")

_SIZES = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_BINARY = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}


class Amount(msgspec.Struct, frozen=True):
    """An amount of memory: `size_bytes`, or `percent` of a total that only the running machine knows."""

    size_bytes: int | None = None
    percent: int | None = None

    def of(self, total_bytes: int) -> int:
        """The amount in bytes where `total_bytes` is all there is; never more than that."""
        if self.percent is not None:
            return total_bytes * self.percent // 100
        return total_bytes if self.size_bytes is None else min(self.size_bytes, total_bytes)


def parse_size(text: str) -> int:
    """Bytes of "2GiB" (2**30), "512MB" (10**6) or "4096"."""
    match = _SIZE.fullmatch(text)
    scale = _SIZES.get(match[2].lower()) if match else None
    if match is None or scale is None:
        # A bare K, M or G means 1000 to some and 1024 to others: the file should say.
        raise ValueError("it must be a size such as 2GiB, 512MB or a number of bytes")
    size = Decimal(match[1]) * scale
    if size != int(size):
        raise ValueError("it is not a whole number of bytes")
    return int(size)


def show_size(size_bytes: int) -> str:
    """`size_bytes` in the largest binary unit that holds it exactly."""
    for unit, scale in _BINARY:
        if size_bytes and size_bytes % scale == 0:
            return f"{size_bytes // scale}{unit}"
    return str(size_bytes)


def parse_amount(text: str) -> Amount:
    """The amount of "60%" (1 to 100, whole) or of a size."""
    match = _PERCENT.fullmatch(text)
    if match is None:
        try:
            return Amount(size_bytes=parse_size(text))
        except ValueError as error:
            raise ValueError(f"{error}, or a share such as 60%") from None
    percent = int(match[1])
    if not 1 <= percent <= 100:
        raise ValueError("a share must be from 1% to 100%")
    return Amount(percent=percent)


def show_amount(amount: Amount) -> str:
    """`amount` as a share or a size."""
    return f"{amount.percent}%" if amount.percent is not None else show_size(amount.size_bytes or 0)


def parse_duration(text: str) -> float:
    """Seconds of "500ms", "5s", "2m" or "1h". A bare number is refused: it would be read as whatever one expects."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError("it must be a duration such as 500ms, 5s, 2m or 1h")
    milliseconds = Decimal(match[1]) * _MILLISECONDS[match[2]]
    if milliseconds != int(milliseconds):
        raise ValueError("it is finer than a millisecond")
    return int(milliseconds) / 1000


def show_duration(seconds: float) -> str:
    """`seconds` (whole milliseconds) in the largest unit that holds them exactly."""
    milliseconds = round(seconds * 1000)
    for unit in ("h", "m", "s"):
        if milliseconds and milliseconds % _MILLISECONDS[unit] == 0:
            return f"{milliseconds // _MILLISECONDS[unit]}{unit}"
    return f"{milliseconds}ms" if milliseconds else "0s"


def parse_mode(text: str) -> int:
    """Permission bits of "0660", "660" or "0o660": always octal, with or without quotes around it."""
    match = _MODE.fullmatch(text)
    if match is None or int(match[1], 8) > 0o777:
        raise ValueError("it must be permission bits in octal, from 0000 to 0777")
    return int(match[1], 8)


def show_mode(mode: int) -> str:
    """`mode` as four octal digits."""
    return f"{mode:04o}"
