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

from h2qd.wire.workers import ChosenToken, GenerationFailed, Prefilling, Scored, ScoreText
from h2qd.worker.engine import EngineError, Said
from h2qd.worker.llama.adapters import NONE
from h2qd.worker.llama.context import ABORTED, Cache, Context, DecodeError, Piece
from h2qd.worker.llama.logprobs import Likelihoods
from h2qd.worker.llama.overflow import Gap
from h2qd.worker.llama.vocabulary import Vocabulary
from h2qd.worker.llama.work import NOWHERE, TOLD_S_MIN

LOGPROBS_TOKENS_MAX = 16384
"""Scored tokens whose single figures are told: more would not fit a message."""

WINDOW_TOKENS_MIN = 4
"""Of smaller ones nothing is left to score."""


class Scorable(NamedTuple):
    """Tokens of which those from `first` on are scored."""

    tokens: list[int]
    first: int


class Scoring:
    """Scores `sequences`, one after another."""

    def __init__(
        self,
        order: ScoreText,
        sequences: Sequence[Scorable],
        context: Context,
        vocabulary: Vocabulary,
        start_s: float,
    ) -> None:
        self.request = order.request
        self.priority = order.priority
        self.session = ""
        self.arrived = 0
        self.text: Sequence[int] = ()
        self.gap: Gap | None = None
        self.adapters = NONE
        self.cache = Cache(NOWHERE)
        self.cancelled = False
        self.ended = False
        self.broken = False
        self.served = 0
        self.surplus = 0
        self._order = order
        self._sequences = sequences
        self._context = context
        self._vocabulary = vocabulary
        self._at = 0  # the sequence that is being computed
        self._next = sequences[0].first  # the token of it to score next
        self._total = sum(len(sequence.tokens) - 1 for sequence in sequences)
        self._before = 0  # tokens of the sequences that are done
        self._tokens = 0
        self._logprob = self._squares = 0.0
        self._told: list[ChosenToken] = []
        self._start_s = self._told_s = start_s

    @property
    def rest(self) -> int:
        """Tokens to compute of the sequence; the last one is not: nothing follows it."""
        return len(self._sequences[self._at].tokens) - 1 - len(self.cache.tokens)

    def seat(self, cache: Cache) -> None:
        """Begin, or go on, in an empty `cache`."""
        self.cache = cache

    def pause(self) -> None:
        """What was computed of the text at hand is computed again."""
        self.cache = Cache(NOWHERE)

    def shifted(self, gap: Gap) -> None:
        """It never comes to that: a text fits."""
        raise NotImplementedError

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
        """It never comes to that."""
        raise NotImplementedError

    def computed(self, outputs: Sequence[NDArray[np.float32]]) -> list[Said]:
        """Score what follows the tokens that were computed."""
        tokens = self._sequences[self._at].tokens
        for logits in outputs:
            likelihoods = Likelihoods(logits, 0 if self._order.logprobs else None)
            if not likelihoods.finite:
                self.broken = True
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

    def cancel(self) -> list[Said]:
        """End it as it was asked to."""
        return self._fail("cancelled", "the request was cancelled")

    def undecoded(self, error: DecodeError) -> list[Said]:
        """What was to be computed was not."""
        if error.status == ABORTED:  # only a cancel aborts
            return self.cancel()
        return self._fail("generation_failed", f"cannot go on: {error}")

    def close(self) -> None:
        """Nothing is held beside the cache."""
        self.ended = True

    def _progress(self) -> list[Said]:
        now_s = time.perf_counter()
        if now_s - self._told_s < TOLD_S_MIN:
            return []
        self._told_s = now_s
        return [Prefilling(self.request, self._before + len(self.cache.tokens), self._total)]

    def _sequence_ended(self) -> list[Said]:
        self._before += len(self.cache.tokens)
        self._at += 1
        if self._at < len(self._sequences):
            self._context.clear(self.cache)
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

    def _fail(self, code: str, message: str) -> list[Said]:
        self.ended = True
        return [GenerationFailed(self.request, code, message)]


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
