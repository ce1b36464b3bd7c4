"""Which tokens may follow, by a client's grammar or JSON schema, as llguidance says.

A grammar in GBNF is read by our own bounded reader and handed on as plain rules of single characters; a schema is
checked for what it may ask, and compiled by the library, which fetches nothing. Its limits bound the work of a step
and the memory of a request. Called by `engine` and `sampler`; where the library is not installed, such requests are
refused as unsupported. Invariant: a grammar is never told of a token that it did not allow.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2qd.wire.names import shown
from h2qd.wire.workers import Sampler
from h2qd.worker.engine import EngineError
from h2qd.worker.gbnf import Characters, Element, GrammarError, Rule, read
from h2qd.worker.heap import trim_heap
from h2qd.worker.schema import check_schema
from h2qd.worker.torch.libraries import llguidance
from h2qd.worker.torch.vocabulary import Vocabulary

_LEXER_STATES_MAX = 5_000
"""Of one request; a state takes 1 to 2 kB."""

_WHITESPACE = r"[ \n\t]{1,20}"
"""Between the parts of JSON: a model that likes spaces must come to an end."""


class BrokenGrammarError(Exception):
    """The grammar can not be followed any further: it allows nothing, or takes too much work."""


class Grammar:
    """What one answer is bound by, and how far it is."""

    def __init__(self, matcher: Any, ends: frozenset[int]) -> None:
        self._matcher = matcher
        self._ends = ends

    def bind(self, logits: NDArray[np.float64]) -> None:
        """Leave only what may follow. Raises `BrokenGrammarError`."""
        mask = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise BrokenGrammarError
        allowed = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), count=logits.size, bitorder="little")
        logits[allowed == 0] = -np.inf

    def take(self, token: int) -> None:
        """Go on after `token`. Raises `BrokenGrammarError`."""
        if token not in self._ends and not self._matcher.consume_token(token):
            raise BrokenGrammarError


class Grammars:
    """Of one model. The library keeps the vocabulary in a form of its own, made once, at the first use.

    That takes some microseconds for each token, and the memory that `core.torch_plan` says.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._tokenizer: Any = None

    def open(self, sampler: Sampler) -> Grammar | None:
        """What binds this request, None when nothing does. Raises `EngineError` (unsupported, invalid_grammar)."""
        if sampler.grammar is None and sampler.json_schema is None:
            return None
        if llguidance is None:
            raise EngineError("unsupported", "cannot use a grammar or a JSON schema: llguidance is not installed")
        if sampler.grammar is not None and sampler.json_schema is not None:
            raise EngineError("invalid_grammar", "cannot use a grammar and a JSON schema at once")
        try:
            written = _from_schema(sampler.json_schema) if sampler.json_schema is not None else None
            written = written or _from_rules(read(sampler.grammar or ""))
        except GrammarError as error:
            raise EngineError("invalid_grammar", str(error)) from error
        limits = llguidance.LLParserLimits(max_lexer_states=_LEXER_STATES_MAX, verbose_errors=False)
        matcher = llguidance.LLMatcher(self._made(), written, log_level=0, limits=limits)
        if matcher.is_error():
            what = "grammar" if sampler.json_schema is None else "JSON schema"
            raise EngineError("invalid_grammar", f"cannot use the {what}: {shown(matcher.get_error(), 200)}")
        return Grammar(matcher, self._vocabulary.ends)

    def _made(self) -> Any:
        if self._tokenizer is None:
            vocabulary = self._vocabulary
            if not vocabulary.ends:
                raise EngineError("unsupported", "cannot use a grammar: the model has no token that ends a text")
            lexicon = vocabulary.lexicon(min(vocabulary.ends))
            source: Any = vocabulary.as_json() if lexicon is None else llguidance.TokenizerWrapper(lexicon)
            try:
                self._tokenizer = llguidance.LLTokenizer(
                    source,
                    n_vocab=vocabulary.size,
                    eos_token=sorted(vocabulary.ends),
                    slices=[],  # they would save half a millisecond a token, and cost half as much memory again
                )
            except Exception as error:  # whatever the library does not know of a tokenizer
                raise EngineError(
                    "unsupported", f"cannot use a grammar with this model's tokenizer: {shown(str(error), 200)}"
                ) from error
            if lexicon is not None:
                source.tokens = lexicon.tokens = []  # the library has them now
            trim_heap()  # making it took as much again
        return self._tokenizer


def _from_schema(text: str) -> str:
    check_schema(text)
    try:
        grammar: str = llguidance.LLMatcher.grammar_from_json_schema(
            text, overrides={"whitespace_pattern": _WHITESPACE, "lenient": False}
        )
    except ValueError as error:
        raise GrammarError(f"cannot use the JSON schema: {shown(str(error), 200)}") from error
    return grammar


def _from_rules(rules: Sequence[Rule]) -> str:
    """The rules in the library's notation: each set of characters is a terminal, each rule one of its rules."""
    terminals: dict[Characters, str] = {}

    def name(element: Element) -> str:
        if isinstance(element, int):
            return f"r{element}"
        return terminals.setdefault(element, f"C{len(terminals)}")

    lines = [
        f"r{number}: " + " | ".join(" ".join(map(name, sequence)) or '""' for sequence in rule)
        for number, rule in enumerate(rules)
    ]
    lines += [f"{terminal}: {_expression(characters)}" for characters, terminal in terminals.items()]
    written: str = llguidance.LLMatcher.grammar_from_lark("\n".join(["start: r0", *lines]) + "\n")
    return written


def _expression(characters: Characters) -> str:
    if not characters.ranges:
        return "/(?s:.)/"
    ranges = "".join(f"\\x{{{first:X}}}-\\x{{{last:X}}}" for first, last in characters.ranges)
    return f"/[{'^' if characters.inverted else ''}{ranges}]/"
