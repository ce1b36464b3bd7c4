"""How likely a model finds a text: one sequence, or windows of a long text as llama.cpp's perplexity tool cuts them.

`Work` for `batch`, made by `engine`. A sequence begins with tokens that are not scored (the context, or the first
half of a window); they are computed like any prompt. The others are computed in pieces of as many tokens as there are
outputs free. What is done follows from the cache alone, so a sequence can begin anew elsewhere at any time.
Invariant: each scored token is counted once, with finite figures.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from h2qd.wire.workers import ChosenToken, Scored, ScoreText
from h2qd.worker.engine import EngineError, Said
from h2qd.worker.llama.adapters import Used
from h2qd.worker.llama.context import Context, Piece
from h2qd.worker.llama.logprobs import Likelihoods
from h2qd.worker.llama.reading import Reading
from h2qd.worker.llama.vocabulary import Vocabulary

LOGPROBS_TOKENS_MAX = 16384
"""Scored tokens whose single figures are told: more would not fit a message."""

WINDOW_TOKENS_MIN = 4
"""Of smaller ones nothing is left to score."""


class Scorable(NamedTuple):
    """Tokens of which those from `first` on are scored."""

    tokens: list[int]
    first: int


class Scoring(Reading):
    """Scores `sequences`, one after another."""

    def __init__(
        self,
        order: ScoreText,
        sequences: Sequence[Scorable],
        context: Context,
        vocabulary: Vocabulary,
        adapters: Used,
        start_s: float,
    ) -> None:
        super().__init__(order, sum(len(sequence.tokens) - 1 for sequence in sequences), context, adapters, start_s)
        self._order = order
        self._sequences = sequences
        self._vocabulary = vocabulary
        self._at = 0  # the sequence that is being computed
        self._next = sequences[0].first  # the token of it to score next
        self._tokens = 0
        self._logprob = self._squares = 0.0
        self._told: list[ChosenToken] = []

    @property
    def rest(self) -> int:
        """Tokens to compute of the sequence; the last one is not: nothing follows it."""
        return len(self._sequences[self._at].tokens) - 1 - len(self.cache.tokens)

    def ready(self, outputs: int) -> int:
        """Either what comes before all scored tokens, or as many of these as there are outputs."""
        plain = self._next - 1 - len(self.cache.tokens)
        return plain if plain > 0 else min(outputs, self.rest)

    def next_of_prompt(self, count: int) -> Piece:
        """The next `count` tokens: their outputs tell of those that follow them."""
        done = len(self.cache.tokens)
        wanted = 0 if done < self._next - 1 else count
        return Piece(self.cache, self._sequences[self._at].tokens[done : done + count], wanted)

    def next_of_answer(self, drafts: int) -> Piece:
        """It never comes to that: all of the text is known."""
        raise AssertionError(drafts)

    def computed(self, outputs: Sequence[NDArray[np.float32]]) -> list[Said]:
        """Score what follows the tokens that were computed."""
        tokens = self._sequences[self._at].tokens
        for logits in outputs:
            likelihoods = Likelihoods(logits, 0 if self._order.logprobs else None)
            if not likelihoods.finite:
                return self._fail("generation_failed", "cannot go on: the model computed no finite numbers")
            token = tokens[self._next]
            logprob = likelihoods.of(token)
            self._next += 1
            self._tokens += 1
            self._logprob += logprob
            self._squares += logprob * logprob
            if self._order.logprobs:
                self._told.append(likelihoods.told(token, self._vocabulary))
        if self._next == len(tokens):
            return self._sequence_ended()
        return self._progress()

    def _sequence_ended(self) -> list[Said]:
        self._before += len(self.cache.tokens)
        self._at += 1
        if self._at < len(self._sequences):
            self._next_text()
            self._next = self._sequences[self._at].first
            return self._progress()
        self.ended = True
        return [
            Scored(
                request=self.request,
                tokens=self._tokens,
                logprob=self._logprob,
                squares=self._squares,
                windows=len(self._sequences) if self._order.window is not None else 0,
                logprobs=self._told,
                compute_ms=(time.perf_counter() - self._start_s) * 1000,
            )
        ]


def sequences(order: ScoreText, vocabulary: Vocabulary, size: int) -> list[Scorable]:
    """What is to be computed for `order`, in sequences of at most `size` tokens.

    Raises `EngineError`: invalid_request, context_overflow.
    """
    found = _windows(order, order.window, vocabulary, size) if order.window else [_one(order, vocabulary, size)]
    scored = sum(len(sequence.tokens) - sequence.first for sequence in found)
    if order.logprobs and scored > LOGPROBS_TOKENS_MAX:
        raise EngineError(
            "invalid_request",
            f"cannot tell each of {scored} tokens: at most {LOGPROBS_TOKENS_MAX}, or ask without logprobs",
        )
    return found


def _one(order: ScoreText, vocabulary: Vocabulary, size: int) -> Scorable:
    before = vocabulary.tokenize(order.context, special=False) if order.context else []
    if vocabulary.adds_bos and vocabulary.bos is not None:
        before.insert(0, vocabulary.bos)
    text = vocabulary.tokenize(order.text, special=False)
    tokens = before + text
    if len(tokens) > size:
        raise EngineError(
            "context_overflow",
            f"cannot score the text at once: with what is before it, it has {len(tokens)} tokens, the context holds"
            f" {size}; --window {size} scores it in parts",
        )
    first = max(1, len(before))  # nothing tells how likely a first token is
    if first >= len(tokens):
        raise EngineError("invalid_request", "cannot score the text: it has no token that follows another")
    return Scorable(tokens, first)


def _windows(order: ScoreText, window: int, vocabulary: Vocabulary, size: int) -> list[Scorable]:
    """As llama.cpp's tool does it: the text with its beginning token, cut; that token in place of each first one.

    tools/perplexity/perplexity.cpp, `perplexity`: of a window of n tokens, those from n/2 + 1 on are scored.
    """
    if order.context:
        raise EngineError("invalid_request", "cannot score windows after a context: give one of both")
    if not WINDOW_TOKENS_MIN <= window <= size:
        raise EngineError(
            "invalid_request",
            f"cannot score windows of {window} tokens: at least {WINDOW_TOKENS_MIN}, and the context holds {size}",
        )
    bos = vocabulary.bos if vocabulary.adds_bos else None
    tokens = ([] if bos is None else [bos]) + vocabulary.tokenize(order.text, special=False)
    count = len(tokens) // window
    if count == 0:
        raise EngineError(
            "invalid_request", f"cannot score windows of {window} tokens: the text has {len(tokens)} in all"
        )
    cut = [tokens[start : start + window] for start in range(0, count * window, window)]
    if bos is not None:
        for one in cut:
            one[0] = bos
    return [Scorable(one, window // 2 + 1) for one in cut]
