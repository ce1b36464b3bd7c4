"""Reads a grammar in GBNF (llama.cpp's notation) into plain rules, and writes such rules back.

Groups and repetitions become rules of their own, so what comes out is flat: no nesting for a native parser to
recurse into, no name but ours, no expansion that was not counted here. Whether the rules are fit for use is for
the engines' `grammar`. Pure. References to tokens (`<...>`) are not part of what is read. Invariant: work and memory
are bounded by ELEMENTS_MAX, whatever the text says.
"""

from dataclasses import dataclass
from typing import TypeAlias

ROOT = "root"
ELEMENTS_MAX = 100_000
REPEAT_MAX = 2000
"""Of one item; llama.cpp takes no more either."""

_CHARACTER_MAX = 0x10FFFF
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")
_PLAIN = _NAME - {"-"} | {" ", "_"}
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}


class GrammarError(Exception):
    """The text is not a grammar that can be used. The message begins with "cannot"."""


@dataclass(frozen=True, slots=True)
class Characters:
    """One character out of `ranges` (first, last), or, when `inverted`, any other."""

    ranges: tuple[tuple[int, int], ...]
    inverted: bool = False


Element: TypeAlias = Characters | int
"""A character, or the number of a rule."""
Sequence: TypeAlias = tuple[Element, ...]
Rule: TypeAlias = tuple[Sequence, ...]
"""The alternatives; an empty one matches nothing at all."""

_ANY = Characters((), inverted=True)


def read(text: str) -> list[Rule]:
    """The rules of a grammar, the one named "root" first. Raises `GrammarError`."""
    return _Reader(text).rules()


def write(rules: list[Rule]) -> str:
    """`rules` in GBNF, the first named "root". Other names have no dash, as those that llama.cpp makes up do."""
    return "\n".join(f"{_name(number)} ::= {_alternatives(rule)}" for number, rule in enumerate(rules))


def _name(number: int) -> str:
    return f"r{number}" if number else ROOT


def _alternatives(rule: Rule) -> str:
    return " | ".join(" ".join(map(_element, sequence)) or '""' for sequence in rule)


def _element(element: Element) -> str:
    if isinstance(element, int):
        return _name(element)
    if element == _ANY:
        return "."
    ranges = "".join(
        _shown(first) if first == last else f"{_shown(first)}-{_shown(last)}" for first, last in element.ranges
    )
    return f"[{'^' if element.inverted else ''}{ranges}]"


def _shown(character: int) -> str:
    text = chr(character)
    return text if text in _PLAIN else f"\\U{character:08X}"


class _Group:
    """An open parenthesis, or a rule's body: the alternatives so far, the items of the one being read."""

    def __init__(self) -> None:
        self.alternatives: list[Sequence] = []
        self.items: list[Sequence] = []

    def end_alternative(self) -> None:
        self.alternatives.append(tuple(element for item in self.items for element in item))
        self.items = []


class _Reader:
    """One pass over a text; `_at` is where it is."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._rules: list[Rule | None] = [None]
        self._numbers = {ROOT: 0}
        self._elements = 0

    def rules(self) -> list[Rule]:
        self._skip_space(newlines=True)
        while self._next():
            self._read_rule()
        for name, number in self._numbers.items():
            if self._rules[number] is None:
                raise GrammarError(f"cannot use the grammar: no rule is named {name[:80]!r}")
        return [rule for rule in self._rules if rule is not None]

    # --- characters of the text -----------------------------------------------------------------------

    def _next(self, ahead: int = 0) -> str:
        """The character `ahead` of the place, empty behind the end."""
        return self._text[self._at + ahead : self._at + ahead + 1]

    def _fault(self, expected: str) -> GrammarError:
        line = self._text.count("\n", 0, self._at) + 1
        found = repr(self._text[self._at : self._at + 16]) if self._next() else "the end"
        return GrammarError(f"cannot read the grammar: line {line}: {expected} expected, not {found}")

    def _skip_space(self, *, newlines: bool) -> None:
        while character := self._next():
            if character == "#":
                while self._next() not in ("", "\r", "\n"):
                    self._at += 1
            elif character in " \t" or (newlines and character in "\r\n"):
                self._at += 1
            else:
                return

    def _take_while(self, characters: frozenset[str], expected: str) -> str:
        start = self._at
        while self._next() in characters:
            self._at += 1
        if start == self._at:
            raise self._fault(expected)
        return self._text[start : self._at]

    def _character(self) -> int:
        """A character of a literal or a set, as itself or escaped."""
        character = self._next()
        if character != "\\":
            if not character:
                raise self._fault("a character")
            self._at += 1
            return ord(character)
        letter = self._next(1)
        if letter in _ESCAPES:
            self._at += 2
            return ord(_ESCAPES[letter])
        digits = self._text[self._at + 2 : self._at + 2 + _HEX_DIGITS.get(letter, 0)]
        if not digits or len(digits) != _HEX_DIGITS[letter] or not set(digits) <= set("0123456789abcdefABCDEF"):
            raise self._fault('an escape (\\x00 \\u0000 \\U00000000 \\t \\r \\n \\\\ \\" \\[ \\] \\-)')
        code = int(digits, 16)
        if code > _CHARACTER_MAX:
            raise self._fault("a character up to \\U0010FFFF")
        self._at += 2 + len(digits)
        return code

    # --- the notation ---------------------------------------------------------------------------------

    def _read_rule(self) -> None:
        name = self._take_while(_NAME, "a rule's name")
        self._skip_space(newlines=False)
        if not self._text.startswith("::=", self._at):
            raise self._fault("'::='")
        self._at += 3
        number = self._number(name)
        if self._rules[number] is not None:
            raise GrammarError(f"cannot use the grammar: two rules are named {name[:80]!r}")
        self._rules[number] = self._body()
        self._skip_space(newlines=True)

    def _body(self) -> Rule:
        """The alternatives up to the end of the line; a line may end within parentheses, and before an item."""
        groups = [_Group()]
        self._skip_space(newlines=True)
        while True:
            group = groups[-1]
            character = self._next()
            if character == "(":
                self._at += 1
                groups.append(_Group())
                self._skip_space(newlines=True)
            elif character == ")" and len(groups) > 1:
                self._at += 1
                group.end_alternative()
                groups.pop()
                groups[-1].items.append((self._add(tuple(group.alternatives)),))
                self._skip_space(newlines=len(groups) > 1)
            elif character == "|":
                self._at += 1
                group.end_alternative()
                self._skip_space(newlines=True)
            elif character and character in "*+?{":
                self._repeat(group)
                self._skip_space(newlines=len(groups) > 1)
            elif character and (character in '".[' or character in _NAME):
                group.items.append(self._item())
                self._skip_space(newlines=len(groups) > 1)
            elif character in ("", "\r", "\n") and len(groups) == 1:
                group.end_alternative()
                return tuple(group.alternatives)
            else:
                raise self._fault("an item, '|' or " + ("')'" if len(groups) > 1 else "the end of the line"))

    def _item(self) -> Sequence:
        match self._next():
            case '"':
                return self._literal()
            case "[":
                return (self._set(),)
            case ".":
                self._at += 1
                self._count(1)
                return (_ANY,)
            case _:
                self._count(1)
                return (self._number(self._take_while(_NAME, "a name")),)

    def _literal(self) -> Sequence:
        self._at += 1
        codes = []
        while self._next() != '"':
            codes.append(self._character())
        self._at += 1
        self._count(len(codes))
        return tuple(Characters(((code, code),)) for code in codes)

    def _set(self) -> Characters:
        self._at += 1
        inverted = self._next() == "^"
        self._at += inverted
        ranges = []
        while self._next() != "]":
            first = last = self._character()
            if self._next() == "-" and self._next(1) != "]":
                self._at += 1
                last = self._character()
            if last < first:
                raise GrammarError(f"cannot use the grammar: the range {chr(first)!r}-{chr(last)!r} is empty")
            ranges.append((first, last))
        if not ranges:
            raise self._fault("a character")
        self._at += 1
        self._count(len(ranges))
        return Characters(tuple(ranges), inverted)

    # --- lowering -------------------------------------------------------------------------------------

    def _repeat(self, group: _Group) -> None:
        """Replace the last item by its repetition: least times the item, then rules for what may follow.

        X* becomes r with r ::= X r | nothing; X{0,2} becomes r2 with r2 ::= X r1 | nothing, r1 ::= X | nothing.
        """
        least, most = self._times()
        if not group.items:
            raise self._fault("an item before a repetition")
        item = group.items.pop()
        if len(item) > 1:
            item = (self._add((item,)),)
        rest: Sequence = ()
        if most is None:
            rest = (len(self._rules),)
            self._add(((*item, *rest), ()))
        else:
            for _ in range(most - least):
                rest = (self._add(((*item, *rest), ())),)
        self._count(least * len(item))
        group.items.append(item * least + rest)

    def _times(self) -> tuple[int, int | None]:
        character = self._next()
        self._at += 1
        if character != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[character]
        self._skip_space(newlines=True)
        least = most = self._integer()
        unbounded = False
        self._skip_space(newlines=True)
        if self._next() == ",":
            self._at += 1
            self._skip_space(newlines=True)
            unbounded = self._next() == "}"
            most = least if unbounded else self._integer()
            self._skip_space(newlines=True)
        if self._next() != "}":
            raise self._fault("'}'")
        self._at += 1
        if most < least:
            raise GrammarError(f"cannot use the grammar: {{{least},{most}}} repeats less than the least")
        return least, None if unbounded else most

    def _integer(self) -> int:
        digits = self._take_while(frozenset("0123456789"), "a number")
        if len(digits) > len(str(REPEAT_MAX)) or int(digits) > REPEAT_MAX:
            raise GrammarError(f"cannot use the grammar: it repeats an item over {REPEAT_MAX} times")
        return int(digits)

    def _number(self, name: str) -> int:
        """The number of the rule `name`, which may come later."""
        if name not in self._numbers:
            self._numbers[name] = len(self._rules)
            self._rules.append(None)
            self._count(1)
        return self._numbers[name]

    def _add(self, rule: Rule) -> int:
        """A rule without a name; its number."""
        self._count(1 + sum(len(sequence) for sequence in rule))
        self._rules.append(rule)
        return len(self._rules) - 1

    def _count(self, elements: int) -> None:
        self._elements += elements
        if self._elements > ELEMENTS_MAX:
            raise GrammarError(f"cannot use the grammar: it expands to over {ELEMENTS_MAX} elements")
