"""Text from standard input, bounded and checked before it becomes a prompt."""

import sys

from h2qctl.errors import H2qError
from h2qd.wire.limits import PROMPT_BYTES_MAX


def whole() -> str:
    """All of it. Raises `H2qError` (too_large, invalid_request)."""
    data = sys.stdin.buffer.read(PROMPT_BYTES_MAX + 1)
    if len(data) > PROMPT_BYTES_MAX:
        raise H2qError("too_large", f"cannot take more than {PROMPT_BYTES_MAX} bytes from standard input")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise H2qError(
            "invalid_request",
            f"cannot read standard input: byte {error.start} is not UTF-8",
            "convert it first: iconv -t UTF-8",
        ) from None
