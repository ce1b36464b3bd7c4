"""Tools, and the turns around their calls, in the forms that programs and files have them in.

`definition` takes a tool as OpenAI writes it, or bare; `turn` takes a message as a mapping; `answered` and `outcome`
are the two turns that follow a call, so that a program needs no more than

    answer = client.chat(messages, tools=tools)
    messages += [answered(answer), *(outcome(call, run(call)) for call in answer.tool_calls)]

What is no tool raises ValueError or TypeError with what is wrong; everything else is the daemon's to judge.
"""

from base64 import b64decode
from collections.abc import Mapping
from typing import Any

import msgspec

from h2qctl.errors import H2qError
from h2qctl.stdin import first
from h2qd.wire import messages as m
from h2qd.wire.limits import PROMPT_BYTES_MAX
from h2qd.wire.names import shown

_WRAPPING = {"type", "function"}


def read(path: str) -> list[m.Tool]:
    """The tools in a file: a JSON list of definitions. Raises `H2qError` (invalid_request, too_large)."""
    hint = "write a JSON list of tools, each with a name, a description and parameters"
    data = first(path, PROMPT_BYTES_MAX + 1)
    if len(data) > PROMPT_BYTES_MAX:
        raise H2qError("too_large", f"cannot take tools of more than {PROMPT_BYTES_MAX} bytes from {shown(path)}")
    try:
        return definitions(msgspec.json.decode(data))
    except (ValueError, TypeError, RecursionError) as error:  # msgspec's are ValueErrors too
        message = f"cannot take the tools in {shown(path)}: {shown(str(error), 500)}"
        raise H2qError("invalid_request", message, hint) from None


def definitions(found: object) -> list[m.Tool]:
    """Several tools. Raises ValueError that says which one is wrong, and why."""
    if not isinstance(found, list | tuple):
        raise ValueError("it is no list of tools")  # noqa: TRY004  # one kind of error for one kind of mistake
    told: list[m.Tool] = []
    for number, one in enumerate(found, 1):
        try:
            told.append(definition(one))
        except ValueError as error:
            raise ValueError(f"tool {number}: {error}") from None
    return told


def definition(found: object) -> m.Tool:
    """A tool as it is, as a mapping of its fields, or as OpenAI wraps that. Raises ValueError."""
    if isinstance(found, m.Tool):
        return found
    if not isinstance(found, Mapping):
        raise ValueError("it is no object")  # noqa: TRY004  # as above
    fields: dict[str, Any] = dict(found)
    if "function" in fields:
        if fields.get("type", "function") != "function" or set(fields) - _WRAPPING or not _is_map(fields["function"]):
            raise ValueError("beside `function`, which is an object, only `type` may stand, and be function")
        fields = dict(fields["function"])
    if fields.pop("strict", None):
        raise ValueError("`strict` cannot be promised here")
    if _is_map(fields.get("parameters")):
        fields["parameters"] = msgspec.json.encode(fields["parameters"]).decode()
    elif fields.get("parameters", "") is None:
        del fields["parameters"]
    return msgspec.convert(fields, m.Tool)


def turn(found: Mapping[str, Any] | m.ChatMessage) -> m.ChatMessage:
    """A message. Of a mapping, images may be base64, and tool calls as OpenAI has them."""
    if isinstance(found, m.ChatMessage):
        return found
    fields = dict(found)
    if fields.get("content") is None and fields.get("tool_calls"):
        fields["content"] = ""
    if "images" in fields:
        fields["images"] = [
            b64decode(one, validate=True) if isinstance(one, str) else one for one in fields["images"]
        ]
    if "tool_calls" in fields:
        fields["tool_calls"] = [past_call(call) for call in fields["tool_calls"] or ()]
    return m.ChatMessage(**fields)


def past_call(call: Mapping[str, Any] | m.ToolCall | m.PastCall) -> m.PastCall:
    """A call as a later turn repeats it; its arguments may be a mapping."""
    if isinstance(call, m.ToolCall | m.PastCall):
        return m.PastCall(call.id, call.name, call.arguments)
    fields = dict(call)
    if "function" in fields:
        fields = {"id": fields.get("id", ""), **fields["function"]}
    if _is_map(fields.get("arguments")):
        fields["arguments"] = msgspec.json.encode(fields["arguments"]).decode()
    return m.PastCall(**fields)


def answered(answer: m.Answer) -> m.ChatMessage:
    """The assistant's turn that an answer is. What was thought is no part of it."""
    return m.ChatMessage("assistant", answer.text, tool_calls=[past_call(call) for call in answer.tool_calls])


def outcome(call: m.ToolCall | m.PastCall, content: str) -> m.ChatMessage:
    """The turn that tells what came of a call."""
    return m.ChatMessage("tool", content, tool_call_id=call.id, name=call.name)


def written(call: m.ToolCall) -> str:
    """A call on one line: its id, then the tool with its arguments."""
    try:
        arguments = msgspec.json.format(call.arguments, indent=-1)
    except msgspec.DecodeError:  # of another daemon than ours
        arguments = call.arguments
    return f"{call.id} {call.name}({arguments})"


def _is_map(value: object) -> bool:
    return isinstance(value, Mapping)
