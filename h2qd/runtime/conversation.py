"""A client's messages as a worker's turns: checked for what only the whole conversation shows, and completed.

Which turns may hold what, how many images there are in all, and which call a tool's turn answers. Arguments and
schemas are not read here: they are text to this process, and the worker's to judge. Pure. Called by `orders`.
"""

from collections.abc import Iterator, Sequence

from h2qd.core.records import Fault
from h2qd.runtime.refusal import Refusal
from h2qd.wire import messages as m
from h2qd.wire.abilities import image_type
from h2qd.wire.limits import IMAGES_MAX
from h2qd.wire.names import shown
from h2qd.wire.workers import ToolCall, Turn

_CHOICES = ("auto", "none", "required")


def turns(messages: Sequence[m.ChatMessage]) -> list[Turn]:
    """The turns; a tool's turn with both the id and the tool's name, where the call is known. Raises `Refusal`."""
    count = sum(len(message.images) for message in messages)
    if count > IMAGES_MAX:
        raise _invalid(f"take {count} images: at most IMAGES_MAX ({IMAGES_MAX}) in all messages")
    return list(_turns(messages))


def _turns(messages: Sequence[m.ChatMessage]) -> Iterator[Turn]:
    open_calls: list[m.PastCall] = []  # of the latest turn that made any: their outcomes follow it
    for message in messages:
        _check(message)
        call_id, name = message.tool_call_id, message.name
        if message.tool_calls:
            open_calls = list(message.tool_calls)
        elif (call := next((one for one in open_calls if _answers(message, one)), None)) is not None:
            open_calls.remove(call)
            call_id, name = call_id or call.id, name or call.name
        calls = [ToolCall(call.id, call.name, call.arguments) for call in message.tool_calls]
        yield Turn(message.role, message.content, message.images, calls, call_id, name)


def _answers(message: m.ChatMessage, call: m.PastCall) -> bool:
    """Whether a turn is the outcome of this call: by the id where it has one, else by the tool's name."""
    if message.tool_call_id:
        return call.id == message.tool_call_id
    return bool(message.name) and call.name == message.name


def _check(message: m.ChatMessage) -> None:
    if message.images and message.role != "user":
        raise _invalid(f"take images in a turn of the role {message.role}: they are for the user's turns")
    if message.tool_calls and message.role != "assistant":
        raise _invalid(f"take tool_calls in a turn of the role {message.role}: they are for the assistant's turns")
    if (message.tool_call_id or message.name) and message.role != "tool":
        raise _invalid(f"take tool_call_id or name in a turn of the role {message.role}: they are for a tool's turns")
    if not all(map(image_type, message.images)):
        raise _invalid("take an image: it is no PNG, JPEG, GIF or WebP")


def check_tools(ask: m.Chat) -> None:
    """Whether the tools can be told apart and the choice is one of them. Raises `Refusal`."""
    names = [tool.name for tool in ask.tools]
    if twice := next((name for name in names if names.count(name) > 1 or name in _CHOICES), None):
        raise _invalid(
            f"take the tool {shown(twice)}: each needs a name of its own, and none of {', '.join(_CHOICES)}"
        )
    if ask.tool_choice not in ("auto", "none", *names) and (ask.tool_choice != "required" or not names):
        raise _invalid(f"follow the tool_choice {shown(ask.tool_choice)}: there is no such tool among `tools`")


def _invalid(what: str) -> Refusal:
    return Refusal(Fault("invalid_request", f"cannot {what}"))
