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
from h2qd.wire.workers import Embedded, EmbedTexts, GenerationFailed, Prefilling
from h2qd.worker.engine import EngineError, Said
from h2qd.worker.llama.adapters import NONE
from h2qd.worker.llama.context import ABORTED, Cache, Context, DecodeError, Piece
from h2qd.worker.llama.overflow import Gap
from h2qd.worker.llama.vocabulary import Vocabulary
from h2qd.worker.llama.work import NOWHERE, TOLD_S_MIN

_NUMBER_BYTES = 9
"""On the wire."""


class Vectors:
    """The vectors of `texts`, which are tokens, one after another."""

    def __init__(self, order: EmbedTexts, texts: "Texts", context: Context, start_s: float) -> None:
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
        self._texts = texts
        self._context = context
        self._vectors: list[list[float]] = []
        self._before = 0  # tokens of the texts that are done
        self._start_s = self._told_s = start_s

    @property
    def _text(self) -> list[int]:
        return self._texts.tokens[len(self._vectors)]

    @property
    def rest(self) -> int:
        """What is before the last token."""
        return len(self._text) - 1 - len(self.cache.tokens)

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
            self.broken = True
            return self._fail("generation_failed", "cannot go on: the model computed no finite numbers")
        self._before += len(self._text)
        self._vectors.append(vector)
        self._context.clear(self.cache)
        if len(self._vectors) < len(self._texts.tokens):
            return self._progress()
        self.ended = True
        return [answered(self._order, self._texts, self._vectors, "last", self._start_s)]

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
        return [Prefilling(self.request, self._before + len(self.cache.tokens), self._texts.count)]

    def _fail(self, code: str, message: str) -> list[Said]:
        self.ended = True
        return [GenerationFailed(self.request, code, message)]


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
