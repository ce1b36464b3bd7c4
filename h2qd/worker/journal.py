"""One JSON line on stderr for what the daemon's log should keep of a process that is about to change or end.

Details (exceptions, tracebacks, paths) go here; what clients see are codes and public words. The write is
one system call, so lines of several workers do not mix and nothing is lost by `os._exit`.
"""

import os
import traceback

import msgspec

_LINE_BYTES_MAX = 4096
"""A pipe takes this much at once (PIPE_BUF), whole."""

_STDERR = 2


def record(event: str, error: BaseException | None = None, **fields: str | int) -> None:
    """Write `event` (noun.verb) with its fields, and the last lines of `error`'s traceback. Never raises."""
    entry: dict[str, str | int] = {"event": event, "pid": os.getpid(), **fields}
    if error is not None:
        entry["error"] = _encodable(f"{type(error).__name__}: {error}"[: _LINE_BYTES_MAX // 8])
        entry["traceback"] = _encodable("".join(traceback.format_tb(error.__traceback__))[-_LINE_BYTES_MAX // 4 :])
    line = msgspec.json.encode(entry) + b"\n"
    if len(line) > _LINE_BYTES_MAX:
        entry.pop("traceback", None)
        line = msgspec.json.encode(entry) + b"\n"
    try:
        os.write(_STDERR, line)
    except OSError:
        return  # nobody reads the log any more; there is no one else to tell


def _encodable(text: str) -> str:
    """`text` without lone surrogates: a path that is not UTF-8 carries them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
