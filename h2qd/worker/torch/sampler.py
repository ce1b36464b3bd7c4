"""Chooses the next token from logits, with numpy: the stages and their order are those of llama.cpp's tools.

Bias, repeat penalty, grammar, top-k, top-p, min-p, temperature, draw. Called by `generation`, one object a request.
Invariant: a seed and the same logits give the same tokens.
"""

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from h2qd.wire.workers import ChosenToken, LikelyToken, Sampler
from h2qd.worker.engine import EngineError
from h2qd.worker.torch.grammar import Grammar
from h2qd.worker.torch.vocabulary import Vocabulary

_LOGARITHM_MIN = -1e12


class NoTokenLeftError(Exception):
    """No token may follow: all that the grammar allows are banned."""


class BrokenLogitsError(Exception):
    """The model computed no finite numbers."""


class Chooser:
    """Chooses as `order` says, within `grammar`, never one of `banned`; `prompt` is what its penalty looks back on.

    Raises `EngineError`: invalid_request.
    """

    def __init__(
        self, order: Sampler, size: int, prompt: Sequence[int], *, banned: Iterable[int], grammar: Grammar | None
    ) -> None:
        if any(token >= size for token in order.logit_bias):
            raise EngineError("invalid_request", f"cannot bias token {max(order.logit_bias)}: there are {size}")
        self._order = order
        merged = order.logit_bias | dict.fromkeys(banned, -np.inf)
        self._biased = np.fromiter(merged.keys(), dtype=np.int64, count=len(merged))
        self._biases = np.fromiter(merged.values(), dtype=np.float64, count=len(merged))
        self._last = deque(prompt[-order.repeat_last_n :] if order.repeat_last_n > 0 else (), order.repeat_last_n)
        self._grammar = grammar
        self._generator = np.random.default_rng(order.seed)

    def choose(self, logits: NDArray[np.float64]) -> int:
        """The next token; changes `logits`.

        Raises `NoTokenLeftError`, `BrokenLogitsError`, `BrokenGrammarError`.
        """
        if not np.isfinite(logits).all():
            raise BrokenLogitsError
        logits[self._biased] += self._biases
        order = self._order
        if order.repeat_penalty != 1.0 and self._last:
            seen = np.unique(np.fromiter(self._last, dtype=np.int64))
            values = logits[seen]
            logits[seen] = np.where(values > 0, values / order.repeat_penalty, values * order.repeat_penalty)
        if self._grammar is not None:
            self._grammar.bind(logits)
        if logits.max() == -np.inf:
            raise NoTokenLeftError
        token = int(logits.argmax()) if order.temperature == 0 else self._drawn(logits)
        self._last.append(token)
        if self._grammar is not None:
            self._grammar.take(token)
        return token

    def _drawn(self, logits: NDArray[np.float64]) -> int:
        order = self._order
        if 0 < order.top_k < logits.size:
            tokens = np.argpartition(-logits, order.top_k - 1)[: order.top_k]
        else:
            tokens = np.arange(logits.size)
        tokens = tokens[np.argsort(-logits[tokens], kind="stable")]
        chances = _softmax(logits[tokens])
        if order.top_p < 1:
            kept = int(np.searchsorted(chances.cumsum(), order.top_p)) + 1
            tokens, chances = tokens[:kept], chances[:kept]
        if order.min_p > 0:
            likely = chances >= order.min_p * chances[0]
            tokens = tokens[likely]
        chances = _softmax(logits[tokens] / order.temperature)
        at = int(np.searchsorted(chances.cumsum(), self._generator.random(), side="right"))
        return int(tokens[min(at, tokens.size - 1)])


def likely(logits: NDArray[np.float64], token: int, count: int, vocabulary: Vocabulary) -> ChosenToken:
    """`token` and the `count` likeliest, as the model finds them before anything is done to its logits."""
    logarithms = log_softmax(logits)
    best = (
        np.argpartition(-logits, count - 1)[:count] if 0 < count < logits.size else np.arange(min(count, logits.size))
    )
    top = [
        LikelyToken(int(one), vocabulary.piece(int(one)), bounded(float(logarithms[one])))
        for one in best[np.argsort(-logits[best], kind="stable")]
    ]
    return ChosenToken(token, vocabulary.piece(token), bounded(float(logarithms[token])), top)


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithms of probabilities, over the last axis."""
    top = logits.max(axis=-1, keepdims=True)
    shifted: NDArray[np.float64] = logits - top
    total: NDArray[np.float64] = np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted - total


def bounded(logarithm: float) -> float:
    """A logarithm as the wire takes it."""
    return min(0.0, max(_LOGARITHM_MIN, logarithm))


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = np.exp(logits - logits[0])  # the first is the largest
    chances: NDArray[np.float64] = weights / weights.sum()
    return chances
