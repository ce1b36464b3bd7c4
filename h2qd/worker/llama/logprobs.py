"""How likely a model finds tokens: natural logarithms of probabilities, from the logits as it computed them.

Pure but for the vocabulary's texts. Called by `slot` before biases, grammar and temperature change the logits, and by
`scoring`. Invariant: every figure is finite and at most 0.
"""

import numpy as np
from numpy.typing import NDArray

from h2qd.wire.workers import ChosenToken, LikelyToken
from h2qd.worker.llama.vocabulary import Vocabulary

LOGPROB_MIN = -1e6
"""Of what a model rules out: no sum with it is infinite."""


class Likelihoods:
    """Of the tokens at one place, by its logits; they are copied when `top` of the likeliest are asked for too."""

    def __init__(self, logits: NDArray[np.float32], top: int | None = None) -> None:
        highest = logits.max()
        self.finite = bool(np.isfinite(highest))  # a NaN is the highest, if there is one
        self._logits = logits if top is None else logits.copy()
        self._top = top or 0
        self._normalizer = 0.0
        if self.finite:
            self._normalizer = float(highest) + float(np.log(np.exp(logits - highest).sum(dtype=np.float64)))

    def of(self, token: int) -> float:
        """The logarithm of this token's probability."""
        return min(0.0, max(LOGPROB_MIN, float(self._logits[token]) - self._normalizer))

    def told(self, token: int, vocabulary: Vocabulary) -> ChosenToken:
        """The token that came, and the likeliest at its place, the first of them first."""
        return ChosenToken(
            token,
            vocabulary.shown(token),
            self.of(token),
            [LikelyToken(one, vocabulary.shown(one), self.of(one)) for one in self._likeliest()],
        )

    def _likeliest(self) -> list[int]:
        count = min(self._top, self._logits.size)
        if count == 0:
            return []
        some = np.argpartition(self._logits, -count)[-count:]
        ordered: list[int] = some[np.lexsort((some, -self._logits[some]))].tolist()
        return ordered
