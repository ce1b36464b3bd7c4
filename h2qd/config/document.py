"""YAML as a bounded tree of texts with their lines.

Built from the parser's events, so no YAML type, tag, anchor or alias is ever acted on: a value is the text that
stands in the file, and `schema` says what it means. Bounds: `DOCUMENT_BYTES_MAX`, `DEPTH_MAX`. Mistakes are
collected as `Fault`s; where one makes a value unusable, a `Broken` node stands in its place and is passed over.
Called by `reader`; it opens no file.
"""

from collections.abc import Iterator
from typing import TypeAlias

import msgspec
import yaml

from h2qd.config.faults import Fault

DOCUMENT_BYTES_MAX = 64 * 1024
DEPTH_MAX = 8
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})


class Scalar(msgspec.Struct, frozen=True):
    """The text of one value. `empty`: nothing, or YAML's null, stands there without quotes."""

    text: str
    line: int
    empty: bool = False


class Sequence(msgspec.Struct, frozen=True):
    """A list."""

    items: list["Node"]
    line: int


class Mapping(msgspec.Struct, frozen=True):
    """A map; `lines` has the line of each key."""

    entries: dict[str, "Node"]
    lines: dict[str, int]
    line: int


class Broken(msgspec.Struct, frozen=True):
    """Something that was refused already."""

    line: int


Node: TypeAlias = Scalar | Sequence | Mapping | Broken


def parse(data: bytes, file: str) -> tuple[Mapping, list[Fault]]:
    """The top map of the YAML in `data`, and what is wrong with it. `file` names it in faults; raises nothing."""
    if len(data) > DOCUMENT_BYTES_MAX:
        text = f"cannot read a configuration of more than {DOCUMENT_BYTES_MAX} bytes"
        return _empty(), [Fault(file, "", text)]
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return _empty(), [Fault(f"{file}:{line}", "", "cannot read this line: it is not UTF-8")]
    builder = _Builder(file)
    try:
        top = builder.document(yaml.parse(text, yaml.SafeLoader))
    except _TooDeepError:
        pass
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        builder.refuse(line, "", "cannot read a control character")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "it is not YAML"
        builder.refuse(mark.line + 1 if mark else 1, "", f"cannot read this as YAML: {problem}")
    except (yaml.YAMLError, ValueError, OverflowError):
        # The scanner lets these two of chr() and int() escape, on escapes and versions out of range.
        builder.refuse(
            builder.line, "", "cannot read this as YAML: a number in an escape or directive is out of range"
        )
    else:
        return top, builder.faults
    return _empty(), builder.faults


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def _empty() -> Mapping:
    return Mapping({}, {}, 1)


class _TooDeepError(Exception):
    """The document is deeper than `DEPTH_MAX`; the fault is noted already."""


class _Builder:
    """Events in, tree out; faults gathered on the way."""

    def __init__(self, file: str) -> None:
        self.faults: list[Fault] = []
        self.line = 1
        self._file = file

    def refuse(self, line: int, key: str, text: str) -> Broken:
        """Note a fault; the node to put where it happened."""
        self.faults.append(Fault(f"{self._file}:{line}", key, text))
        return Broken(line)

    def document(self, events: Iterator[yaml.Event]) -> Mapping:
        """The one document of the stream."""
        top: Node | None = None
        for event in events:
            self.line = _line(event)
            if isinstance(event, yaml.DocumentStartEvent) and top is not None:
                self.refuse(self.line, "", "cannot read a second document: the file holds one")
                break
            if isinstance(event, yaml.NodeEvent):
                top = self._node(event, events, "", 1)
        match top:
            case Mapping():
                return top
            case None | Scalar(empty=True) | Broken():
                return _empty()
            case _:
                self.refuse(top.line, "", "cannot use this: the file must be a map of keys")
                return _empty()

    def _node(self, event: yaml.NodeEvent, events: Iterator[yaml.Event], key: str, depth: int) -> Node:
        self.line = line = _line(event)
        if isinstance(event, yaml.AliasEvent):
            return self.refuse(line, key, f"cannot use the alias *{event.anchor}: write the value out")
        if event.anchor is not None:
            self.refuse(line, key, f"cannot use the anchor &{event.anchor}: write the value out where it is needed")
        tag = getattr(event, "tag", None)
        if tag is not None:
            self.refuse(line, key, f"cannot use the tag {tag}: each key knows its own type")
        if isinstance(event, yaml.ScalarEvent):
            return Scalar(event.value, line, empty=event.style is None and event.value in _NULLS)
        if depth > DEPTH_MAX:
            # Not even read past: the scanner's time grows with the square of open brackets, minutes for 64 KiB.
            self.refuse(
                line, key, f"cannot use values nested more than {DEPTH_MAX} deep: nothing after this was read"
            )
            raise _TooDeepError
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(events, key, depth, line)
        return self._mapping(events, key, depth, line)

    def _sequence(self, events: Iterator[yaml.Event], key: str, depth: int, line: int) -> Sequence:
        items: list[Node] = []
        for event in events:
            if not isinstance(event, yaml.NodeEvent):
                break
            items.append(self._node(event, events, f"{key}[{len(items)}]", depth + 1))
        return Sequence(items, line)

    def _mapping(self, events: Iterator[yaml.Event], key: str, depth: int, line: int) -> Mapping:
        entries: dict[str, Node] = {}
        lines: dict[str, int] = {}
        for event in events:
            if not isinstance(event, yaml.NodeEvent):
                break
            name = self._node(event, events, key, depth + 1)
            below = f"{key}.{name.text}" if key and isinstance(name, Scalar) else getattr(name, "text", key)
            value = self._value(events, below, depth + 1)
            if isinstance(name, Sequence | Mapping):
                self.refuse(name.line, key, "cannot use a list or map as a key")
            elif isinstance(name, Scalar) and name.text in entries:
                self.refuse(name.line, below, f"cannot use a key twice: it is on line {lines[name.text]} already")
            elif isinstance(name, Scalar):
                entries[name.text] = value
                lines[name.text] = name.line
        return Mapping(entries, lines, line)

    def _value(self, events: Iterator[yaml.Event], key: str, depth: int) -> Node:
        event = next(events)
        # The parser gives a value to every key, an empty scalar if need be.
        if not isinstance(event, yaml.NodeEvent):
            raise TypeError(event)
        return self._node(event, events, key, depth)
