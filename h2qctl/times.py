"""Times as they are typed: seconds, or with a unit as the configuration has them: 500ms, 90s, 2m, 1h."""

import argparse
import re

_TIME = re.compile(r"(\d{1,9}(?:\.\d{1,9})?|\.\d{1,9})(ms|s|m|h)?", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(argument: str) -> float:
    """A time to wait, above 0. Raises ArgumentTypeError."""
    match = _TIME.fullmatch(argument)
    number = float(match[1]) * _SECONDS[match[2] or "s"] if match is not None else 0.0
    if number <= 0:
        raise argparse.ArgumentTypeError(f"cannot read {argument!r} as a time: give seconds, or 500ms, 90s, 2m, 1h")
    return number
