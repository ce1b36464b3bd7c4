"""What a JSON schema may ask for: bounded before any library that compiles it sees it.

Converters expand repetitions as they go, recurse, and answer what they do not know with any exception. Pure; called
by the engines' own converters, knows none of them.
"""

import json
import re
from collections.abc import Iterator
from typing import TypeAlias

from h2qd.worker.gbnf import GrammarError

DEPTH_MAX = 32
NODES_MAX = 4096
KEY_CHARS_MAX = 64
"""Keys become parts of rules' names, all those on the way joined."""
PROPERTIES_MAX = 128
"""Of one object; the optional ones cost the square of their number."""
PATTERN_CHARS_MAX = 256
REPEAT_MAX = 1000
"""Of a string's length or an array's, and in a pattern."""
REPEATS_MAX = 10_000
"""All of them together."""

_COUNTS = ("minItems", "maxItems", "minLength", "maxLength")
_QUANTIFIER = re.compile(r"\{([^}]*)\}")

_Json: TypeAlias = "dict[str, _Json] | list[_Json] | str | int | float | bool | None"


def check_schema(text: str) -> None:
    """Refuse what is no schema, or asks for too much. Raises `GrammarError`."""
    try:
        schema: _Json = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"cannot read the JSON schema: {error}") from error
    if not isinstance(schema, dict):
        raise GrammarError("cannot use the JSON schema: it is not an object")
    _check(schema)


def _check(schema: _Json) -> None:
    repeats = 0
    for count, (node, depth) in enumerate(_nodes(schema), 1):
        if depth > DEPTH_MAX:
            raise GrammarError(f"cannot use the JSON schema: it is over {DEPTH_MAX} deep")
        if count > NODES_MAX:
            raise GrammarError(f"cannot use the JSON schema: it has over {NODES_MAX} parts")
        if isinstance(node, dict):
            _check_keys(node)
            counts = _counts(node)
            if any(times > REPEAT_MAX for times in counts):
                raise GrammarError(f"cannot use the JSON schema: it repeats a part over {REPEAT_MAX} times")
            repeats += sum(counts)
            if repeats > REPEATS_MAX:
                raise GrammarError(f"cannot use the JSON schema: it repeats parts over {REPEATS_MAX} times in all")


def _nodes(schema: _Json) -> Iterator[tuple[_Json, int]]:
    """Every value in it with its depth, without recursion."""
    stack = [(schema, 0)]
    while stack:
        node, depth = stack.pop()
        yield node, depth
        if isinstance(node, dict):
            stack += [(child, depth + 1) for child in node.values()]
        elif isinstance(node, list):
            stack += [(child, depth + 1) for child in node]


def _check_keys(node: "dict[str, _Json]") -> None:
    if len(node) > PROPERTIES_MAX:
        raise GrammarError(f"cannot use the JSON schema: an object in it has over {PROPERTIES_MAX} keys")
    if any(len(key) > KEY_CHARS_MAX for key in node):
        raise GrammarError(f"cannot use the JSON schema: a key in it is over {KEY_CHARS_MAX} characters")


def _counts(node: "dict[str, _Json]") -> list[int]:
    """How often this node repeats something; what is not a number is left to the converter to refuse."""
    counts = [count for key in _COUNTS if isinstance(count := node.get(key), int)]
    pattern = node.get("pattern")
    if isinstance(pattern, str):
        if len(pattern) > PATTERN_CHARS_MAX:
            raise GrammarError(f"cannot use the JSON schema: a pattern is over {PATTERN_CHARS_MAX} characters")
        numbers = [part.strip() for found in _QUANTIFIER.findall(pattern) for part in found.split(",")]
        counts += [int(number) for number in numbers if number.isascii() and number.isdigit()]
    return counts
