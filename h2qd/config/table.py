"""The flat table: checked values and their sources by dotted key, taken from a tree of texts and from overrides.

`reader` fills it in order of precedence and builds a `Config` from it. It holds what was wrong, too, and goes on
after each mistake: the invariant is that a key has a value here only if that value passed its kind.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from h2qd.config import document
from h2qd.config.faults import Fault
from h2qd.config.kinds import AdapterList, FilePath, ListKind, NameMap
from h2qd.config.schema import KEYS, LOCAL_KEYS, MAPS, Key, Map
from h2qd.wire.names import name_fault, shown

_SHOWN_CHARS_MAX = 80


class Table:
    """Values by dotted key. `maps` has, for each of `MAPS`, the values of each entry by its keys."""

    def __init__(self, file: str) -> None:
        self.values: dict[str, Any] = {}
        self.sources: dict[str, str] = {}
        self.maps: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in MAPS}
        self.faults: list[Fault] = []
        self._file = file
        self._folder = str(Path(file).parent)
        self._servers: frozenset[str] = frozenset()

    def refuse(self, where: str, key: str, text: str) -> None:
        """Note a mistake."""
        self.faults.append(Fault(where, key, text))

    def take(self, text: str, key: str, *, where: str, folder: str, source: str) -> None:
        """Check the text of a key outside of `models` and keep its value. Relative paths start at `folder`."""
        self._take(text, key, KEYS[key], where=where, folder=folder, source=source)

    def read(self, top: document.Mapping) -> None:
        """Take all that a file says."""
        remotes = top.entries.get("remotes")
        self._servers = frozenset(remotes.entries) if isinstance(remotes, document.Mapping) else frozenset()
        self._section(top, "")

    # --- sections ---------------------------------------------------------------------------------

    def _section(self, node: document.Mapping, prefix: str) -> None:
        """Take the keys below `prefix`, which is "" or ends in a dot."""
        here = {key.removeprefix(prefix).split(".")[0] for key in KEYS if key.startswith(prefix)}
        for name, below in node.entries.items():
            key, where = prefix + name, self._where(node.lines[name])
            if key in MAPS:
                self._map(below, key, MAPS[key])
            elif name not in here:
                self.refuse(where, key, _unknown(name, prefix, here | (set() if prefix else set(MAPS))))
            elif key in KEYS:
                self._leaf(below, where, key, KEYS[key])
            elif isinstance(below, document.Mapping):
                self._section(below, f"{key}.")
            elif not _absent(below):
                self.refuse(where, key, f"cannot use {_words(below)}: it must be a map of keys")

    def _map(self, node: document.Node, name: str, spec: Map) -> None:
        where = self._where(node.line)
        if not isinstance(node, document.Mapping):
            if not _absent(node):
                self.refuse(where, name, f"cannot use {_words(node)}: it must be a map of {spec.what}s")
            return
        if len(node.entries) > spec.entries_max:
            text = f"cannot use {len(node.entries)} {spec.what}s: at most {spec.entries_max}"
            self.refuse(where, name, text)
            return
        for entry, below in node.entries.items():
            key, where = f"{name}.{entry}", self._where(node.lines[entry])
            if fault := name_fault(entry):
                self.refuse(where, key, f"cannot use this name for a {spec.what}: {fault}")
            elif isinstance(below, document.Mapping):
                self._entry(below, where, name, entry)
            elif not isinstance(below, document.Broken):
                needed = " and a ".join(spec.required)
                self.refuse(where, key, f"cannot use {_words(below)}: it must be a map with a {needed}")

    def _entry(self, node: document.Mapping, where: str, name: str, entry: str) -> None:
        spec, prefix = MAPS[name], f"{name}.{entry}."
        server = entry.partition("/")[0] if name == "models" else ""
        elsewhere = server in self._servers
        for part, below in node.entries.items():
            line = self._where(node.lines[part])
            if elsewhere and part in LOCAL_KEYS:
                self.refuse(line, prefix + part, f"cannot use it for a model of the remote {server}")
            elif part in spec.keys:
                self._leaf(below, line, prefix + part, spec.keys[part])
            else:
                self.refuse(line, prefix + part, _unknown(part, prefix, set(spec.keys)))
        for part in () if elsewhere else spec.required:
            if part not in node.entries:
                self.refuse(where, f"{prefix}{part}", f"cannot do without this key: a {spec.what} needs it")
        # An entry's values move out of the flat table: names may hold dots, so their keys are for people only.
        self.maps[name][entry] = {
            part: self.values.pop(prefix + part) for part in spec.keys if prefix + part in self.values
        }

    # --- values -----------------------------------------------------------------------------------

    def _leaf(self, node: document.Node, where: str, key: str, spec: Key) -> None:
        source = f"{Path(self._file).name}:{node.line}"
        if isinstance(node, document.Broken):
            return
        if isinstance(node, document.Scalar) and node.empty:
            self.refuse(where, key, "cannot use an empty value: leave the key out for its default")
        elif isinstance(node, document.Mapping) and isinstance(spec.kind, NameMap):
            self.values[key] = self._names(node, key, spec.kind)
            self.sources[key] = source
        elif isinstance(node, document.Sequence) and isinstance(spec.kind, ListKind):
            self.values[key] = self._list(node, key, spec.kind)
            self.sources[key] = source
        elif isinstance(node, document.Scalar) and not isinstance(spec.kind, ListKind | NameMap):
            self._take(node.text, key, spec, where=where, folder=self._folder, source=source)
        else:
            self.refuse(where, key, f"cannot use {_words(node)}: it must be a {spec.kind.words}")

    def _list(self, node: document.Sequence, key: str, kind: ListKind) -> Any:
        named: dict[str, Any] = {}
        for item in node.items:
            if isinstance(item, document.Scalar):
                text = kind.located(item.text, self._folder) if isinstance(kind, AdapterList) else item.text
                try:
                    named[text] = kind.parse(text)
                except ValueError as error:
                    self.refuse(self._where(item.line), key, f"cannot use {_quoted(item.text)}: {error}")
            elif not isinstance(item, document.Broken):
                self.refuse(self._where(item.line), key, f"cannot use {_words(item)}: it must be a {kind.item_words}")
        return kind.gather(named)

    def _names(self, node: document.Mapping, key: str, kind: NameMap) -> tuple[tuple[str, str], ...]:
        pairs: dict[str, str] = {}
        for ours, below in node.entries.items():
            where = self._where(node.lines[ours])
            if fault := name_fault(ours):
                self.refuse(where, f"{key}.{ours}", f"cannot use this name for a model: {fault}")
            elif isinstance(below, document.Scalar):
                try:
                    pairs[ours] = kind.parse(below.text)
                except ValueError as error:
                    self.refuse(where, f"{key}.{ours}", f"cannot use {_quoted(below.text)}: {error}")
            elif not isinstance(below, document.Broken):
                self.refuse(where, f"{key}.{ours}", f"cannot use {_words(below)}: it must be a name")
        return tuple(pairs.items())

    def _take(self, text: str, key: str, spec: Key, *, where: str, folder: str, source: str) -> None:
        if isinstance(spec.kind, FilePath) and text:
            text = str(Path(folder).absolute() / text)
        try:
            self.values[key] = spec.kind.parse(text)
        except ValueError as error:
            self.refuse(where, key, f"cannot use {_quoted(text)}: {error}")
        else:
            self.sources[key] = source

    def _where(self, line: int) -> str:
        return f"{self._file}:{line}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that is nearest to `name`, if any is near."""
    # Only a bounded part of a hostile name takes part: difflib's time grows with its square.
    near = difflib.get_close_matches(name[:_SHOWN_CHARS_MAX], list(known), 1)
    return near[0] if near else None


def _unknown(name: str, prefix: str, here: set[str]) -> str:
    """What to say of the unknown key `name` where the keys `here` are possible."""
    if prefix + name in KEYS:
        return "cannot use a dotted key: each part stands on a line of its own, indented below the one before"
    if near := nearest(name, sorted(here)):
        return f"cannot use an unknown key: did you mean {prefix}{near}?"
    # Perhaps it is right and stands in the wrong section.
    by_last_part = {key.rpartition(".")[2]: key for key in KEYS}
    if near := nearest(name, by_last_part):
        return f"cannot use an unknown key: did you mean {by_last_part[near]}?"
    return f"cannot use an unknown key: known here are {', '.join(sorted(here))}"


def _absent(node: document.Node) -> bool:
    """Whether nothing stands there (a section whose keys are all commented out), or something refused already."""
    return isinstance(node, document.Broken) or (isinstance(node, document.Scalar) and node.empty)


def _words(node: document.Node) -> str:
    match node:
        case document.Scalar():
            return _quoted(node.text)
        case document.Sequence():
            return "a list"
        case _:
            return "a map"


def _quoted(text: str) -> str:
    return f"'{shown(text, _SHOWN_CHARS_MAX)}'"
