"""Renders a conversation through the template that a model file carries (Jinja, as Hugging Face uses it).

A template is a program from a hostile file: it runs in Jinja's sandbox, for a bounded number of lines, with bounded
memory and output. Called by `chat`. Whether the text may hold control tokens is for `chat`.
"""

import datetime as dt
import json
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from h2qd.wire.limits import PROMPT_BYTES_MAX
from h2qd.wire.names import shown
from h2qd.wire.workers import Turn
from h2qd.worker.engine import EngineError

SOURCE_BYTES_MAX = 256 * 1024
OUTPUT_CHARS_MAX = 2 * PROMPT_BYTES_MAX
LINES_MAX = 2_000_000
"""Lines of Python that a rendering may run: about a second. A real one runs a few dozen for each message."""
MEMORY_BYTES_MAX = 256 * 1024 * 1024
"""What a rendering may add to the address space: the longest prompt several times over."""
_DATE_FORMAT_CHARS_MAX = 64
_NUMBER_BITS_MAX = 64


class _ExceededError(Exception):
    """The template runs too long or says too much."""


class _RefusedError(Exception):
    """The template called raise_exception: it does not take these messages."""


class ChatTemplate:
    """A template, compiled. Raises `EngineError` (no_chat_template) when it cannot be."""

    def __init__(self, source: bytes) -> None:
        if len(source) > SOURCE_BYTES_MAX:
            raise _unusable(f"it has over {SOURCE_BYTES_MAX} bytes")
        environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.filters["tojson"] = _to_json
        environment.globals.update(raise_exception=_refuse, strftime_now=_now)
        try:
            with _bounded_memory(), _bounded_lines():
                self._template = environment.from_string(source.decode("utf-8"))
        except (_ExceededError, MemoryError) as error:
            raise _unusable("it takes too long to compile, or too much memory") from error
        except Exception as error:  # the compiler raises what Python's does, and more
            raise _unusable(_reason(error)) from error

    def render(self, turns: list[Turn], *, bos: str, eos: str) -> str:
        """The conversation as the model was taught it, up to where the answer begins.

        Raises `EngineError`: invalid_messages when the template refuses or cannot handle the messages,
        no_chat_template when it does not end.
        """
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            with _bounded_memory(), _bounded_lines():
                pieces = self._template.generate(
                    messages=messages,
                    add_generation_prompt=True,
                    bos_token=bos,
                    eos_token=eos,
                    tools=None,
                    documents=None,
                )
                return _joined(pieces)
        except _RefusedError as error:
            raise EngineError(
                "invalid_messages", f"the chat template refused the messages: {shown(str(error))}"
            ) from error
        except (_ExceededError, MemoryError) as error:
            raise _unusable("it takes too long, or too much memory") from error
        except Exception as error:  # the sandbox lets through whatever an expression raises
            raise EngineError("invalid_messages", f"the chat template failed: {_reason(error)}") from error


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with the operators bounded that turn a short line into endless arithmetic."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise SecurityError("the template may not use **")
        if isinstance(left, int) and isinstance(right, int) and (left * right).bit_length() > _NUMBER_BITS_MAX:
            raise SecurityError("the template computes with too large numbers")
        return super().call_binop(context, operator, left, right)


def _unusable(reason: str) -> EngineError:
    return EngineError("no_chat_template", f"cannot use the model's chat template: {reason}")


def _reason(error: Exception) -> str:
    return shown(f"{type(error).__name__}: {error}")


def _joined(pieces: Iterator[str]) -> str:
    text: list[str] = []
    chars = 0
    for piece in pieces:
        chars += len(piece)
        if chars > OUTPUT_CHARS_MAX:
            raise _ExceededError
        text.append(piece)
    return "".join(text)


def _refuse(message: object = "") -> NoReturn:
    raise _RefusedError(message)


def _now(form: str) -> str:
    if len(form) > _DATE_FORMAT_CHARS_MAX:
        raise SecurityError("the template asks for a date in too long a form")
    return dt.datetime.now(tz=dt.UTC).astimezone().strftime(form)


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


@contextmanager
def _bounded_lines() -> Iterator[None]:
    """Raise `_ExceededError` in the block once it has run LINES_MAX lines of Python, on this thread."""
    left = LINES_MAX

    def on_event(_frame: FrameType, event: str, _argument: object) -> Callable[..., Any]:
        nonlocal left
        if event == "line":
            left -= 1
            if left < 0:
                raise _ExceededError
        return on_event

    before = sys.gettrace()
    sys.settrace(on_event)
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """Make allocations in the block fail (`MemoryError`) once MEMORY_BYTES_MAX more are mapped than at its start."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES_MAX
    bounds = [bound for bound in (soft, hard) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([limit, *bounds]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
