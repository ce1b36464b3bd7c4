"""A conversation and its tools in the words of the two APIs: what is asked, never what is answered (`calls`).

OpenAI's API has images as data URLs among the parts of a content, and arguments as text; Ollama has images as a list
of base64 beside it, and arguments as an object. A tool is described alike in both. Called by the dialects.
"""

from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import msgspec

from h2qd.wire.abilities import image_type
from h2qd.wire.names import shown
from h2qd.wire.workers import Generate, ToolCall, Turn
from h2qd.worker.engine import EngineError
from h2qd.worker.remote.calls import is_object

_EFFORTS = {False: "none", True: "medium"}
_NAME_CHARS_MAX = 64


def check(order: Generate) -> None:
    """Raises `EngineError` (invalid_request): a schema or arguments that are no JSON object."""
    for tool in order.tools:
        _object(tool.parameters, f"the parameters of the tool {shown(tool.name, _NAME_CHARS_MAX)}")
    for call in (call for turn in order.turns or () for call in turn.tool_calls):
        _object(call.arguments, f"the arguments of a call of {shown(call.name, _NAME_CHARS_MAX)}")


def tools(order: Generate) -> list[dict[str, Any]]:
    """What may be called."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": _object(tool.parameters, "a tool's parameters"),
            },
        }
        for tool in order.tools
    ]


def for_ollama(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """The messages of /api/chat."""
    return [_for_ollama(turn) for turn in turns]


def _for_ollama(turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.images:
        message["images"] = [b64encode(image).decode() for image in turn.images]
    if turn.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "function": {"name": call.name, "arguments": _object(call.arguments, "its arguments")}}
            for call in turn.tool_calls
        ]
    if turn.name:
        message["tool_name"] = turn.name
    if turn.tool_call_id:
        message["tool_call_id"] = turn.tool_call_id
    return message


def for_openai(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """The messages of /chat/completions."""
    return [_for_openai(turn) for turn in turns]


def _for_openai(turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.images:
        parts = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in turn.images]
        message["content"] = [*([{"type": "text", "text": turn.content}] if turn.content else []), *parts]
    if turn.tool_calls:
        message["content"] = turn.content or None
        message["tool_calls"] = [_call(call) for call in turn.tool_calls]
    if turn.tool_call_id:
        message["tool_call_id"] = turn.tool_call_id
    return message


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def beyond_text(order: Generate) -> dict[str, Any]:
    """Fields of /chat/completions for tools and thinking, where they are asked for."""
    body: dict[str, Any] = {}
    if order.tools:
        body["tools"] = tools(order)
        if order.tool_choice in ("none", "required"):
            body["tool_choice"] = order.tool_choice
        elif order.tool_choice != "auto":
            body["tool_choice"] = {"type": "function", "function": {"name": order.tool_choice}}
    if order.think is not None:
        body["reasoning_effort"] = _EFFORTS[order.think] if isinstance(order.think, bool) else order.think
    return body


def _data_url(image: bytes) -> str:
    return f"data:{image_type(image)};base64,{b64encode(image).decode()}"


def _object(text: str, what: str) -> msgspec.Raw:
    """A JSON object as a part of a request. Raises `EngineError` (invalid_request) unless it is just that."""
    if not is_object(text):
        raise EngineError("invalid_request", f"cannot use {what}: it is no JSON object")
    return msgspec.Raw(text.encode())
