"""Makes of a client's grammar or JSON schema a text that native code can be given, or refuses it.

llama.cpp (as of llama-cpp-python 0.3.36) trusts grammars: it hangs on `{5,3}`, on repetitions of long items and on
rules that fan out to each other (its search for left recursion visits every path), overflows the stack on nested
parentheses, and ends the process at an assertion when left recursion through a rule that can be empty leaves no
state. So all of it is checked here, on plain rules. What cannot be seen beforehand is a grammar whose ambiguity grows
with the text; `sampler` bounds the time of a step for that. Called by `sampler`; pure.
"""

from collections import deque

from h2qd.wire.workers import Sampler
from h2qd.worker import gbnf
from h2qd.worker.engine import EngineError
from h2qd.worker.gbnf import GrammarError, Rule
from h2qd.worker.llama.schema import schema_to_gbnf

PATHS_MAX = 2000
"""Ways from a rule down to a first character: states that each token is tried on."""

DEPTH_MAX = 1000
"""Rules within rules before a first character: native code recurses that deep."""


def grammar_text(sampler: Sampler) -> bytes | None:
    """The GBNF that binds this request, None when nothing does. Raises `EngineError` (invalid_grammar)."""
    if sampler.grammar is not None and sampler.json_schema is not None:
        raise EngineError("invalid_grammar", "cannot use a grammar and a JSON schema at once")
    try:
        if sampler.json_schema is not None:
            return checked(schema_to_gbnf(sampler.json_schema))
        return None if sampler.grammar is None else checked(sampler.grammar)
    except GrammarError as error:
        raise EngineError("invalid_grammar", str(error)) from error


def checked(text: str) -> bytes:
    """The grammar rewritten as plain rules, fit for native code. Raises `GrammarError`."""
    rules = gbnf.read(text)
    _check_fan_out(_first_rules(rules, _nullable(rules)))
    return gbnf.write(rules).encode("ascii")


def _nullable(rules: list[Rule]) -> list[bool]:
    """Which rules can match nothing. Each alternative waits for the rules in it that are not known yet."""
    nullable = [False] * len(rules)
    waiting: list[list[tuple[int, int]]] = [[] for _ in rules]
    missing: list[list[int]] = []
    ready: deque[int] = deque()
    for number, rule in enumerate(rules):
        missing.append([0] * len(rule))
        for index, sequence in enumerate(rule):
            references = [element for element in sequence if isinstance(element, int)]
            if len(references) < len(sequence):
                continue  # a character is never nothing
            missing[number][index] = len(references)
            for reference in references:
                waiting[reference].append((number, index))
            if not references:
                ready.append(number)
    while ready:
        number = ready.popleft()
        if nullable[number]:
            continue
        nullable[number] = True
        for user, index in waiting[number]:
            missing[user][index] -= 1
            if missing[user][index] == 0:
                ready.append(user)
    return nullable


def _first_rules(rules: list[Rule], nullable: list[bool]) -> list[list[int]]:
    """For each rule, the rules that may match at its very beginning, as often as they stand there."""
    first: list[list[int]] = []
    for rule in rules:
        found: list[int] = []
        for sequence in rule:
            for element in sequence:
                if not isinstance(element, int):
                    break
                found.append(element)
                if not nullable[element]:
                    break
        first.append(found)
    return first


def _check_fan_out(first: list[list[int]]) -> None:
    """Refuse left recursion, too many ways to a first character, and too long ones."""
    paths = [0] * len(first)  # 0: not known yet
    depths = [0] * len(first)
    entered = [False] * len(first)
    for start in range(len(first)):
        stack = [start]
        while stack:
            number = stack[-1]
            if paths[number]:
                stack.pop()
            elif not entered[number]:
                entered[number] = True
                for child in first[number]:
                    if paths[child] == 0 and entered[child]:
                        raise GrammarError("cannot use the grammar: a rule begins with itself (left recursion)")
                    if paths[child] == 0:
                        stack.append(child)
            else:
                stack.pop()
                paths[number] = 1 + sum(paths[child] for child in first[number])
                depths[number] = 1 + max((depths[child] for child in first[number]), default=0)
                if paths[number] > PATHS_MAX:
                    raise GrammarError(f"cannot use the grammar: a rule has over {PATHS_MAX} ways to begin")
                if depths[number] > DEPTH_MAX:
                    raise GrammarError(f"cannot use the grammar: rules begin with rules over {DEPTH_MAX} deep")
