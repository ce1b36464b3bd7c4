"""What users hand over on standard input or in a file, bounded; text is checked before it becomes a prompt."""

import sys

from h2qctl.errors import H2qError
from h2qd.wire.limits import PROMPT_BYTES_MAX
from h2qd.wire.names import shown


def whole() -> str:
    """All of standard input. Raises `H2qError` (too_large, invalid_request)."""
    return _text(sys.stdin.buffer.read(PROMPT_BYTES_MAX + 1), "standard input")


def contents(path: str) -> str:
    """All of a file; `-` is standard input. Raises `H2qError` (too_large, invalid_request)."""
    if path == "-":
        return whole()
    return _text(first(path, PROMPT_BYTES_MAX + 1), shown(path))


def first(path: str, count: int) -> bytes:
    """The first `count` bytes of a file. Raises `H2qError` (invalid_request)."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123  # pathlib would cost each start 6 ms
            return file.read(count)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise H2qError("invalid_request", f"cannot read {shown(path)}: {shown(str(error))}", "name a file") from None


def _text(data: bytes, name: str) -> str:
    if len(data) > PROMPT_BYTES_MAX:
        raise H2qError("too_large", f"cannot take more than {PROMPT_BYTES_MAX} bytes from {name}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise H2qError(
            "invalid_request",
            f"cannot read {name}: byte {error.start} is not UTF-8",
            "convert it first: iconv -t UTF-8",
        ) from None
