"""One line of a batch: what it asks for. Pure.

A line is an object with a `prompt`, `messages` or `texts`, the options of infer, chat or embed, and perhaps an `id`;
or a line of OpenAI's batches. It is checked against the very shapes of the wire, so a key or value that the daemon
would refuse is told for its line before anything is sent. Callers: `runner`, and the dry run.
"""

from typing import Any, Literal, NamedTuple

import msgspec

from h2qctl.batch import openai
from h2qctl.errors import H2qError
from h2qctl.tools import definitions
from h2qd.wire import messages as m
from h2qd.wire.limits import PROMPT_BYTES_MAX

LINE_BYTES_MAX = 2 * PROMPT_BYTES_MAX
"""As JSON a prompt may take twice the room."""

ID_CHARS_MAX = 256

Call = Literal["infer", "chat", "embed"]
_FORMS: dict[str, tuple[Call, type[m.Ask]]] = {
    "prompt": ("infer", m.Infer),
    "messages": ("chat", m.Chat),
    "texts": ("embed", m.Embed),
}
_NOT_HERE = ("stream", "window")
"""What concerns pieces of an answer; here answers are whole."""


class Job(NamedTuple):
    """What to ask: a method of the client, its first argument and its options. `id` is the user's own name for it."""

    id: str | None
    call: Call
    subject: Any
    options: dict[str, Any]


class BadLineError(H2qError):
    """A line that asks for nothing that can be done. `id` as far as it could be read."""

    id: str | None = None


def parse(line: bytes) -> Job:
    """The job that a line describes. Raises `BadLineError` (invalid_request, too_large)."""
    if len(line) > LINE_BYTES_MAX:
        raise BadLineError("too_large", f"cannot take a line of more than {LINE_BYTES_MAX} bytes", "split it")
    try:
        fields = msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadLineError(
            "invalid_request", f"cannot read the line as a JSON object: {error}", "mend the line"
        ) from None
    name: str | None = None
    try:
        if "custom_id" in fields or "url" in fields:
            fields = openai.translated(fields)
        name = _name(fields.pop("id", None))
        return _job(name, fields)
    except (ValueError, RecursionError) as error:  # msgspec's are ValueErrors too
        bad = BadLineError("invalid_request", f"cannot do what the line asks for: {error}", "mend the line")
        bad.id = name
        raise bad from None


def _job(name: str | None, fields: dict[str, Any]) -> Job:
    found = [key for key in _FORMS if key in fields]
    if len(found) != 1:
        raise ValueError(f"it needs one of {', '.join(_FORMS)}, and has {len(found)} of them")
    call, shape = _FORMS[found[0]]
    for key in ("op", "kind"):
        if (said := fields.pop(key, call)) != call:
            raise ValueError(f"`{key}` is {said!r}, but `{found[0]}` is what {call} takes")
    for key in _NOT_HERE:
        if key in fields:
            raise ValueError(f"`{key}` does not belong in a batch")
    if isinstance(fields.get("stop"), str):
        fields["stop"] = [fields["stop"]]
    if isinstance(fields.get("json_schema"), dict):
        fields["json_schema"] = msgspec.json.encode(fields["json_schema"]).decode()
    if call == "chat" and "tools" in fields:
        fields["tools"] = msgspec.to_builtins(definitions(fields["tools"]))
    fields.setdefault("priority", "low")
    msgspec.convert(fields, shape)
    fields.pop("model", None)  # who runs it knows the model, also of a line that names none
    return Job(name, call, fields.pop(found[0]), fields)


def _name(said: object) -> str | None:
    if said is None or (isinstance(said, str) and len(said) <= ID_CHARS_MAX):
        return said
    raise ValueError(f"`id` is a text of at most {ID_CHARS_MAX} characters")
