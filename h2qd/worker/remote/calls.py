"""The tools that a model wants called, put together from what its server says of them.

OpenAI's API streams a call in pieces: the first has its id and name, the others more of its arguments, and `index`
says whose they are. Servers differ: some leave the index out, or use one for all. Ollama says a call in one piece.
Filled in by the dialects through `reply`, which bounds how much text there is in all.
Invariant: what comes out has a name, an id of its own, and a JSON object as arguments.
"""

from dataclasses import dataclass, field
from itertools import count

import msgspec

from h2qd.wire.limits import TOOL_ARGUMENTS_CHARS_MAX, TOOL_CALLS_MAX, TOOL_NAME_CHARS_MAX
from h2qd.wire.names import shown
from h2qd.wire.workers import ToolCall
from h2qd.worker.remote.errors import MALFORMED, RemoteError, nonsense


@dataclass(slots=True)
class _Call:
    """A call in the making."""

    id: str
    name: str
    arguments: list[str] = field(default_factory=list)


class Calls:
    """The calls of one answer, in the order in which they began."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._latest: dict[int, _Call] = {}
        self._chars = 0

    def piece(self, index: int | None, call_id: str, name: str, arguments: str) -> None:
        """A piece of a call, or all of it. Raises `RemoteError` (remote_failed) when it is too much."""
        self._chars += len(arguments)
        if self._chars > TOOL_ARGUMENTS_CHARS_MAX:
            raise nonsense(f"the arguments of its tool calls are longer than {TOOL_ARGUMENTS_CHARS_MAX} characters")
        if max(len(call_id), len(name)) > TOOL_NAME_CHARS_MAX:
            raise nonsense(f"the id or name of a tool call is longer than {TOOL_NAME_CHARS_MAX} characters")
        call = self._call(index, call_id, name)
        call.id, call.name = call.id or call_id, call.name or name
        if arguments:  # those are counted, empty ones are not
            call.arguments.append(arguments)

    def _call(self, index: int | None, call_id: str, name: str) -> _Call:
        """The one that a piece belongs to: a new one at a new index or id, or a name where indices are not used."""
        key = -1 if index is None else index
        call = self._latest.get(key)
        other = call is not None and ((call_id and call.id and call_id != call.id) or (index is None and name))
        if call is None or other:
            if len(self._calls) == TOOL_CALLS_MAX:
                raise nonsense(f"it calls more than {TOOL_CALLS_MAX} tools")
            call = self._latest[key] = _Call(call_id, name)
            self._calls.append(call)
        return call

    def ended(self, *, cut: bool) -> list[ToolCall]:
        """All calls. One whose arguments are no object is left out where the answer was `cut`, else it fails.

        Raises `RemoteError`: remote_failed for a call without a name, generation_failed for such arguments.
        """
        told: list[ToolCall] = []
        ids: set[str] = set()
        for number, call in enumerate(self._calls, 1):
            arguments = "".join(call.arguments).strip() or "{}"
            if not call.name:
                raise nonsense("it calls a tool without a name")
            if not is_object(arguments):
                if cut:
                    continue
                name = shown(call.name, 64)
                raise RemoteError(
                    "generation_failed", f"the model calls {name} with arguments that are no JSON object"
                )
            call_id = call.id
            if not call_id or call_id in ids:
                call_id = next(made for n in count(number) if (made := f"call_{n}") not in ids)
            ids.add(call_id)
            told.append(ToolCall(call_id, call.name, arguments))
        return told


def is_object(text: str) -> bool:
    """Whether a text is a JSON object and nothing else: what arguments and their schemas must be."""
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except MALFORMED:
        return False
