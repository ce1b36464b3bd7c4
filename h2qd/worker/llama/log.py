"""Keeps the last error lines that llama.cpp logged, so that a refusal can say why. Prints nothing.

The library calls in from any of its threads. Called by `model`, before anything else native. Invariant: what is
kept is bounded, whatever a model file makes the library say.
"""

from collections import deque

from llama_cpp import llama_cpp as native

_LEVEL_ERROR = 4  # enum ggml_log_level
_LINES_MAX = 4
_LINE_CHARS_MAX = 300

_lines: deque[str] = deque(maxlen=_LINES_MAX)


def _take(level: int, text: bytes | None, _data: object) -> None:
    if level == _LEVEL_ERROR and text:
        _lines.append(text[:_LINE_CHARS_MAX].decode("utf-8", "replace").strip())


_callback = native.llama_log_callback(_take)  # the library keeps its address, so this module keeps the object


def capture() -> None:
    """From now on, and with nothing kept yet, the library's log comes here instead of stderr."""
    _lines.clear()
    native.llama_log_set(_callback, None)


def last_error() -> str:
    """The reason behind the last failure: the first error line of what is kept; empty when there is none.

    The library logs the cause first, then what each caller up the stack makes of it.
    """
    return _lines[0] if _lines else ""
