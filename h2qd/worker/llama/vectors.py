"""Texts to vectors with a model that generates: what its last layer says of a text's last token.

`Work` for `batch`, made by `engine`; models made for vectors are `encoder`'s. Texts are computed one after another in
one place, each from nothing, so that a vector does not depend on what was computed before. The last token goes with
the pass that gives everybody else a token, with embeddings switched on: a pass has outputs for all its tokens then,
so no piece of a prompt may be in it.
"""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from h2qd.wire.limits import WORKER_FRAME_BYTES_MAX
from h2qd.wire.workers import Embedded, EmbedTexts
from h2qd.worker.engine import EngineError, Said
from h2qd.worker.llama.adapters import Used
from h2qd.worker.llama.context import Context, Piece
from h2qd.worker.llama.reading import Reading
from h2qd.worker.llama.vocabulary import Vocabulary

_NUMBER_BYTES = 9
"""On the wire."""


class Vectors(Reading):
    """The vectors of `texts`, which are tokens, one after another."""

    def __init__(self, order: EmbedTexts, texts: "Texts", context: Context, adapters: Used, start_s: float) -> None:
        super().__init__(order, texts.count, context, adapters, start_s)
        self._order = order
        self._texts = texts
        self._vectors: list[list[float]] = []

    @property
    def _text(self) -> list[int]:
        return self._texts.tokens[len(self._vectors)]

    @property
    def rest(self) -> int:
        """What is before the last token."""
        return len(self._text) - 1 - len(self.cache.tokens)

    def ready(self, outputs: int) -> int:
        """All of the rest."""
        del outputs
        return self.rest

    def next_of_prompt(self, count: int) -> Piece:
        """The next `count` tokens of the text."""
        done = len(self.cache.tokens)
        return Piece(self.cache, self._text[done : done + count], 0)

    def next_of_answer(self, drafts: int) -> Piece:
        """The text's last token."""
        del drafts
        return Piece(self.cache, self._text[-1:], 1, vector=True)

    def computed(self, outputs: Sequence[NDArray[np.float32]]) -> list[Said]:
        """A piece of a text, or its vector."""
        if not outputs:
            return self._progress()
        vector = finished(outputs[0], normalize=self._order.normalize)
        if vector is None:
            return self._break()
        self._before += len(self._text)
        self._vectors.append(vector)
        self._next_text()
        if len(self._vectors) < len(self._texts.tokens):
            return self._progress()
        self.ended = True
        return [answered(self._order, self._texts, self._vectors, "last", self._start_s)]


class Texts:
    """The tokens of an order's texts, `count` in all, each of them at most `size`; `truncated` were left out."""

    def __init__(self, order: EmbedTexts, vocabulary: Vocabulary, size: int, width: int) -> None:
        """Raises `EngineError`: invalid_request, context_overflow. Vectors are of `width` numbers."""
        if not order.texts:
            raise EngineError("invalid_request", "cannot make vectors: there is no text")
        if (len(order.texts) + 1) * width * _NUMBER_BYTES > WORKER_FRAME_BYTES_MAX:
            most = WORKER_FRAME_BYTES_MAX // (width * _NUMBER_BYTES) - 1
            raise EngineError("invalid_request", f"cannot tell vectors of {width} numbers: at most {most} at once")
        self.truncated = 0
        self.tokens = [self._fitting(text, order, vocabulary, size) for text in order.texts]
        self.count = sum(map(len, self.tokens))

    def _fitting(self, text: str, order: EmbedTexts, vocabulary: Vocabulary, size: int) -> list[int]:
        tokens = vocabulary.tokenize(text, special=False, framed=True)
        if not tokens:
            raise EngineError("invalid_request", "cannot make a vector of an empty text: this model adds no token")
        over = len(tokens) - size
        if over <= 0:
            return tokens
        if not order.truncate:
            raise EngineError(
                "context_overflow",
                f"cannot fit a text: it has {len(tokens)} tokens, at most {size} become a vector here;"
                " --overflow truncate leaves out its end",
            )
        self.truncated += over
        end = tokens[-1:] if vocabulary.is_special(tokens[-1]) else []  # what the model wants there is kept
        return tokens[: size - len(end)] + end


def finished(vector: NDArray[np.float32], *, normalize: bool) -> list[float] | None:
    """The vector as it is told, by default of length 1; None when it has no finite numbers."""
    told = vector.astype(np.float64)
    length = float(np.sqrt(np.dot(told, told)))
    if not np.isfinite(length):
        return None
    if normalize and length > 0:
        told /= length
    numbers: list[float] = told.tolist()
    return numbers


def answered(order: EmbedTexts, texts: Texts, vectors: list[list[float]], pooling: str, start_s: float) -> Embedded:
    """All vectors, in the order of the texts."""
    return Embedded(
        request=order.request,
        vectors=vectors,
        pooling=pooling,
        prompt_tokens=texts.count,
        truncated_tokens=texts.truncated,
        compute_ms=(time.perf_counter() - start_s) * 1000,
    )
