"""What can go wrong with a server, as public codes; and a server's own words about it, bounded and escaped.

`remote_unreachable`: it cannot be connected to, or broke off. `remote_failed`: it refused, or says what is no answer.
`queue_full`: it is busy or limits the rate, longer than is worth waiting. `generation_failed`: it says that it failed
itself. `context_overflow`: the prompt is too long for its model. `unsupported`: it has no such thing for this model.
Called by everything here; raises nothing.
"""

from contextlib import suppress

import msgspec

from h2qd.wire.names import shown
from h2qd.worker.engine import EngineError

TEXT_CHARS_MAX = 500
"""Of a server's own words."""

MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding a server's bytes raises, ValidationError among them."""

_BUSY = frozenset({429, 503})
_PASSING = frozenset({408, 425, 429, 502, 503, 504})
"""Statuses that may be gone at the next try."""


class RemoteError(EngineError):
    """A server did not do what it was asked. `again`: nothing came yet, so that another try may help.

    `after_s`: not before so many seconds, as the server says. `param`: the field that it does not take.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int = 0,
        again: bool = False,
        after_s: float | None = None,
        param: str = "",
    ) -> None:
        failing = (status >= 500 or status == 408) and code != "unsupported"
        super().__init__(code, message, away=code == "remote_unreachable" or failing)
        self.status = status
        self.again = again
        self.after_s = after_s
        self.param = param


class _Details(msgspec.Struct):
    """OpenAI's error object."""

    message: str | None = None
    type: str | None = None
    code: str | int | None = None
    param: str | None = None


class _Body(msgspec.Struct):
    """`error` as Ollama (a text) and OpenAI (an object) have it; some servers put the object's fields here."""

    error: str | _Details | None = None
    message: str | None = None
    detail: msgspec.Raw = msgspec.Raw(b"")


_body = msgspec.json.Decoder(_Body)


def refused(status: int, body: bytes, *, after_s: float | None = None) -> RemoteError:
    """A response that is not 2xx. `body` is what there was of it, not to be trusted in any way."""
    details = _details(body)
    text = shown(" ".join((details.message or "").split()), TEXT_CHARS_MAX) or "it does not say why"
    if _too_long(status, details):
        code = "context_overflow"
    elif status in _BUSY:
        code = "queue_full"
    elif _unsupported(status, details):
        code = "unsupported"
    elif status >= 500 or status == 408:
        code = "generation_failed"
    else:
        code = "remote_failed"
    return RemoteError(
        code,
        f"the server answered {status}: {text}",
        status=status,
        again=status in _PASSING,
        after_s=after_s,
        param=_param(details),
    )


def failed_midway(text: str) -> RemoteError:
    """The server says, within an answer that it began, that it failed."""
    within = _within(text)
    text = text if within is None else within.message or ""
    words = shown(" ".join(text.split()), TEXT_CHARS_MAX) or "it does not say why"
    return RemoteError("generation_failed", f"the server gave its answer up: {words}")


def nonsense(what: str) -> RemoteError:
    """The server says what the API does not have."""
    return RemoteError("remote_failed", f"cannot understand the server: {what}")


def broken_off(what: str, *, again: bool = False) -> RemoteError:
    """The connection, or an answer, ended early."""
    return RemoteError("remote_unreachable", what, again=again)


def error_text(body: bytes) -> str:
    """What an error object says of itself; empty when it is none."""
    return _details(body).message or ""


def _details(body: bytes) -> _Details:
    try:
        read = _body.decode(body)
    except MALFORMED:
        return _Details(message=body.decode("utf-8", "replace") if body[:1] not in (b"{", b"<") else None)
    if isinstance(read.error, _Details):
        return _within(read.error.message or "") or read.error
    text = read.error or read.message or bytes(read.detail).decode("utf-8", "replace")
    return _within(text) or _Details(message=text)


def _within(text: str) -> _Details | None:
    """The error object that a text is: Ollama passes on so what its runner, llama.cpp's server, answered."""
    with suppress(*MALFORMED):
        read = _body.decode(text)
        if isinstance(read.error, _Details) and read.error.message:
            return read.error
    return None


def _too_long(status: int, details: _Details) -> bool:
    """OpenAI and vLLM: the code; llama.cpp, also within Ollama: the type; Ollama itself: its words alone."""
    if status not in (400, 413):
        return False
    if details.code == "context_length_exceeded" or details.type == "exceed_context_size_error":
        return True
    words = (details.message or "").lower()
    return "context length" in words and ("exceed" in words or "longer than" in words)


def _unsupported(status: int, details: _Details) -> bool:
    """What a model cannot do, and others can. For images llama.cpp, and so Ollama, has only words of its own."""
    return status == 501 or (status == 500 and "image input is not supported" in (details.message or "").lower())


def _param(details: _Details) -> str:
    """The field that was refused; where only the words have it (`max_tokens`), it is looked for there."""
    if details.param:
        return details.param
    return "max_tokens" if "max_completion_tokens" in (details.message or "") else ""
