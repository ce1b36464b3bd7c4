"""The generated parts of PROTOCOL.md: limits, envelopes, errors, commands, shapes and a worked example.

They are read off the very structs and tables that enforce the protocol, so the document cannot drift; a test
compares the two. `python -m h2qd.wire.document` writes them anew; the prose between them is written by hand.
Raises `TypeError` at a field without a type of its own.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec import inspect as types

from h2qd.wire import catalogue, codes, frames, limits
from h2qd.wire import messages as m

PATH = Path(__file__).with_name("PROTOCOL.md")

LIMITS = {
    "PROTOCOL_VERSION": "the `v` of every envelope",
    "ENVELOPE_BYTES_MAX": "the envelope of a request",
    "CONTROL_BYTES_MAX": "the body of a request that carries no prompt",
    "PROMPT_BYTES_MAX": "the body of a request that carries a prompt or messages",
    "FRAME_BYTES_MAX": "any frame; a larger one cuts the connection",
    "FRAMES_MAX": "frames of a message",
    "ID_MAX": "request ids and every other integer",
    "NAME_CHARS_MAX": "a model's name",
    "PATH_CHARS_MAX": "a path",
    "DEADLINE_MS_MAX": "`deadline_ms`",
    "REQUESTS_PER_CLIENT_MAX": "requests that one connection may have in flight",
    "CHUNK_WINDOW_DEFAULT": "chunks under way without credit, unless the request says otherwise",
    "CHUNK_WINDOW_MAX": "the most that a window or a credit may be",
    "HEARTBEAT_MS": "the longest silence about a request in flight",
    "TOKENS_MAX": "`max_tokens`",
    "STOPS_MAX": "stop strings of a request",
    "STOP_CHARS_MAX": "one stop string",
    "MESSAGES_MAX": "messages of a conversation",
    "LOGIT_BIAS_MAX": "entries of `logit_bias`",
    "LOGPROBS_MAX": "likeliest tokens told for each token of an answer",
    "SWARM_MODELS_MAX": "models that one request asks the same",
    "IMAGES_MAX": "images of a request, over all its messages",
    "IMAGE_BYTES_MAX": "one image; all of them are in one body",
    "TOOLS_MAX": "tools of a request",
    "TOOL_NAME_CHARS_MAX": "the name of a tool, and the id of a call",
    "TOOL_TEXT_CHARS_MAX": "the description of a tool",
    "TOOL_CALLS_MAX": "calls of one answer, or turn",
    "TOOL_ARGUMENTS_CHARS_MAX": "the arguments of a call, and of all calls of an answer",
    "ADAPTERS_USED_MAX": "adapters that one request is answered with",
    "TEXTS_MAX": "texts that one request turns into vectors",
    "TOKENIZE_CHARS_MAX": "a text that is tokenized, in characters, and a list of tokens that becomes text",
    "GRAMMAR_CHARS_MAX": "a grammar or JSON schema",
    "SLOTS_MAX": "requests that a load can be planned for at a time",
    "LAYERS_MAX": "entries of a per-layer list",
    "LABEL_CHARS_MAX": "what a model file says of itself in one string",
    "NOTICES_KEPT": "notices that a late reader can still ask for",
}
"""What each limit bounds, for clients; the values stand in `limits`."""


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, tuple("---" for _ in head), *(tuple(cell.replace("|", r"\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """A bound as people write it: 2^53-1 rather than 9007199254740991."""
    for below in (1, 2):
        power = int(value + below)
        if power > 2**30 and power.bit_count() == 1:
            return f"2^{power.bit_length() - 1}-{below}"
    return str(int(value)) if value == int(value) else f"{value:g}"


def _interval(kind: types.IntType | types.FloatType) -> str:
    """The range of a number: a square bracket includes the bound, a round one does not."""
    if (kind.ge, kind.gt, kind.le, kind.lt) == (None, None, None, None):
        return ""
    low = f"[{number(kind.ge)}" if kind.ge is not None else f"({number(kind.gt)}" if kind.gt is not None else "(-inf"
    high = f"{number(kind.le)}]" if kind.le is not None else f"{number(kind.lt)})" if kind.lt is not None else "inf)"
    return f" {low}, {high}"


def _length(kind: types.StrType | types.BytesType | types.ListType | types.DictType, unit: str) -> str:
    low, high = kind.min_length or 0, kind.max_length
    if high is None:
        return ""
    return f" (at most {high} {unit})" if low == 0 else f" ({low} to {high} {unit})"


def _scalar_text(kind: types.Type) -> str:
    match kind:
        case types.BoolType():
            return "bool"
        case types.NoneType():
            return "nil"
        case types.IntType():
            return "int" + _interval(kind)
        case types.FloatType():
            return "float" + _interval(kind)
        case types.StrType():
            pattern = f" (matching `{kind.pattern}`)" if kind.pattern else ""
            return "str" + _length(kind, "characters") + pattern
        case types.BytesType():
            return "bin" + _length(kind, "bytes")
        case _:
            raise TypeError(f"cannot document a field of type {kind}")


def type_text(kind: types.Type) -> str:
    """A field's type in words. Raises `TypeError` for a type that says nothing, such as `Any`."""
    match kind:
        case types.ListType():
            item = type_text(kind.item_type)
            return f"list of {f'({item})' if ' or ' in item else item}" + _length(kind, "items")
        case types.DictType():
            return f"map from {type_text(kind.key_type)} to {type_text(kind.value_type)}" + _length(kind, "entries")
        case types.LiteralType():
            return "one of " + ", ".join(f"`{value}`" for value in kind.values)
        case types.EnumType():
            return "one of " + ", ".join(f"`{member.value}`" for member in kind.cls)
        case types.UnionType():
            return " or ".join(type_text(each) for each in kind.types)
        case types.StructType():
            return f"[{kind.cls.__name__}](#{kind.cls.__name__.lower()})"
        case _:
            return _scalar_text(kind)


def fields_of(shape: type[msgspec.Struct]) -> tuple[types.Field, ...]:
    """The fields of a struct, inherited ones first."""
    kind = types.type_info(shape)
    if not isinstance(kind, types.StructType):
        raise TypeError(f"cannot document {shape}: it is no struct")
    return kind.fields


def _default(field: types.Field) -> str:
    if field.required:
        return "required"
    value = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return "nil" if value is None else f"`{msgspec.json.encode(value).decode()}`"


def fields_table(shape: type[msgspec.Struct]) -> str:
    """Name, type with its range, and default of each field."""
    rows = [(f"`{field.encode_name}`", type_text(field.type), _default(field)) for field in fields_of(shape)]
    return table(("field", "type", "default"), rows) if rows else "No fields: an empty map."


def words(shape: type[msgspec.Struct]) -> str:
    """A struct's docstring, a paragraph a line."""
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(shape.__doc__ or "").split("\n\n"))


def _nested(kind: types.Type) -> Iterator[type[msgspec.Struct]]:
    """The structs that a type leads to, outermost first."""
    match kind:
        case types.StructType():
            yield kind.cls
            for field in kind.fields:
                yield from _nested(field.type)
        case types.ListType():
            yield from _nested(kind.item_type)
        case types.DictType():
            yield from _nested(kind.value_type)
        case types.UnionType():
            for each in kind.types:
                yield from _nested(each)


def shapes(roots: list[type[msgspec.Struct]]) -> list[type[msgspec.Struct]]:
    """`roots` and every struct inside them, each once, in order of appearance."""
    return list(dict.fromkeys(shape for root in roots for shape in _nested(types.type_info(root))))


def request_shapes() -> list[type[msgspec.Struct]]:
    """Every struct that a client sends in a body."""
    return shapes([command.request for command in catalogue.CATALOGUE.values()])


def reply_shapes() -> list[type[msgspec.Struct]]:
    """Every struct that the daemon sends in a body."""
    said = [shape for command in catalogue.CATALOGUE.values() for shape in (command.reply, command.chunk) if shape]
    return shapes([m.ErrorReply, m.Progress, *said])


def _described(kinds: list[type[msgspec.Struct]]) -> str:
    return "\n\n".join(f"#### {shape.__name__}\n\n{words(shape)}\n\n{fields_table(shape)}" for shape in kinds)


def _limits() -> str:
    rows = [(f"`{name}`", f"{getattr(limits, name)}", what) for name, what in LIMITS.items()]
    return table(("limit", "value", "what it bounds"), rows)


def _errors() -> str:
    rows = [
        (f"`{code.name}`", "yes" if code.retryable else "no", str(code.exit_status), code.meaning, code.hint)
        for code in codes.CODES.values()
    ]
    return table(("code", "retryable", "exit status", "meaning", "hint"), rows)


def _linked(shape: type[msgspec.Struct] | None) -> str:
    return type_text(types.type_info(shape)) if shape else "none"


def _commands() -> str:
    rows = [
        (
            f"`{command.op}`",
            command.access.name.lower(),
            _linked(command.request),
            _linked(command.reply),
            _linked(command.chunk),
            str(command.bytes_max),
            command.summary,
        )
        for command in catalogue.CATALOGUE.values()
    ]
    return table(("op", "access", "request", "reply", "chunk", "body bytes max", "what it does"), rows)


def conversation() -> list[tuple[str, str, list[bytes]]]:
    """A worked example: who speaks, a remark, and the frames."""
    client, daemon = "client", "daemon"
    version = m.Version(
        version="0.1.0", protocol=limits.PROTOCOL_VERSION, python="3.11.7", libraries={"zmq": "4.3.5"}
    )
    infer = m.Infer(prompt="Once", model="tiny", max_tokens=4, stream=True, window=2, temperature=0)
    failure = m.ErrorReply(code="cancelled", message="the request was cancelled", hint="nothing to do", request="r7")

    def asked(message_id: int, op: str, body: m.Ask | None = None) -> list[bytes]:
        return frames.request_frames(frames.Request(limits.PROTOCOL_VERSION, message_id, op), body)

    def said(message_id: int, kind: frames.Kind, body: m.Say) -> list[bytes]:
        return frames.response_frames(message_id, kind, body)

    return [
        (client, "asks for the versions, as request 1", asked(1, "daemon.version")),
        (
            client,
            "pipelines request 2, a stream, without waiting; two chunks may come",
            asked(2, "infer.text", infer),
        ),
        (daemon, "answers request 1; it has ended", said(1, frames.Kind.REPLY, version)),
        (daemon, "request 2 is alive", said(2, frames.Kind.PROGRESS, m.Progress(phase="prefill", request="r7"))),
        (daemon, "the first chunk; one more may come", said(2, frames.Kind.CHUNK, m.Delta(text=" upon", tokens=1))),
        (daemon, "the second chunk; now none may come", said(2, frames.Kind.CHUNK, m.Delta(text=" a", tokens=1))),
        (client, "took both: two more may come", asked(0, "stream.credit", m.Credit(id=2, chunks=2))),
        (daemon, "what piled up, in one chunk", said(2, frames.Kind.CHUNK, m.Delta(text=" time 🙂", tokens=3))),
        (client, "has enough, and says so as request 3", asked(3, "request.cancel", m.Cancel(id=2))),
        (daemon, "passed it on; request 3 has ended", said(3, frames.Kind.REPLY, m.Cancelled(request="r7"))),
        (daemon, "request 2 has ended", said(2, frames.Kind.ERROR, failure)),
    ]


def _hex(frame: bytes) -> str:
    return "\n".join(f"    {frame[i : i + 24].hex(' ')}" for i in range(0, len(frame), 24))


def _example() -> str:
    parts = []
    for speaker, remark, (envelope, body) in conversation():
        view = [msgspec.json.encode(msgspec.msgpack.decode(frame)).decode() for frame in (envelope, body)]
        parts.append(f"{speaker}: {remark}\n  {view[0]}\n{_hex(envelope)}\n  {view[1]}\n{_hex(body)}")
    return "```text\n" + "\n\n".join(parts) + "\n```"


SECTIONS: dict[str, Callable[[], str]] = {
    "request envelope": lambda: fields_table(frames.Request),
    "response envelope": lambda: fields_table(frames.Response),
    "limits": _limits,
    "commands": _commands,
    "requests": lambda: _described(request_shapes()),
    "replies": lambda: _described(reply_shapes()),
    "errors": _errors,
    "example": _example,
}
"""What stands between the markers of each name."""


def rewritten(text: str) -> str:
    """`text` with every generated part made anew. Raises `ValueError` unless each stands in it exactly once."""
    for name, make in SECTIONS.items():
        begin, end = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"cannot place the section {name!r}: its markers must stand once each")
        start, stop = text.index(begin) + len(begin), text.index(end)
        text = f"{text[:start]}\n\n{make()}\n\n{text[stop:]}"
    return text


def main(arguments: list[str]) -> int:
    """Write the document named, by default the protocol's own, with its generated parts made anew."""
    path = Path(arguments[0]) if arguments else PATH
    path.write_text(rewritten(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
