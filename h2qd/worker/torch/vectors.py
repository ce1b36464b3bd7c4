"""Texts that become vectors: pooled states of the last layer, a few texts at a time.

An encoder takes texts of like length together, padded, as many as the batch holds; a model that generates takes one
text after another, in pieces. Called by `engine`, a step at a time. Invariant: it ends exactly once, and every number
of its vectors is finite.
"""

import time
from typing import Any

from h2qd.wire.workers import Embedded, EmbedTexts, GenerationFailed, Prefilling
from h2qd.worker.engine import EngineError, Said
from h2qd.worker.prompt import CHARS_PER_TOKEN_MAX
from h2qd.worker.torch.libraries import torch
from h2qd.worker.torch.model import InterruptedPassError, Model, Wanted

_NORM_MIN = 1e-12


class Vectors:
    """Answers `order`. Raises `EngineError` (context_overflow, invalid_request) for texts that it cannot take."""

    def __init__(self, order: EmbedTexts, model: Model, start_s: float) -> None:
        self.request = order.request
        self.priority = order.priority
        self.wanted = Wanted()
        self.ended = False
        self._order = order
        self._model = model
        self._start_s = start_s
        self._texts: list[list[int]] = []
        self._truncated = 0
        for number, text in enumerate(order.texts, 1):
            if len(text) > model.ctx * CHARS_PER_TOKEN_MAX and not order.truncate:
                raise EngineError("context_overflow", f"cannot fit text {number}: it has {len(text)} characters")
            tokens, whole = model.vocabulary.framed(text, model.ctx)
            if whole > model.ctx and not order.truncate:
                raise EngineError(
                    "context_overflow",
                    f"cannot fit text {number}: it has {whole} tokens, the model takes {model.ctx} at most",
                )
            if not tokens:
                raise EngineError("invalid_request", f"cannot make a vector of text {number}: it has no tokens")
            self._truncated += whole - len(tokens)
            self._texts.append(tokens)
        self._vectors: list[list[float]] = [[] for _ in self._texts]
        # The longest first, and popped from the end: what is padded together is of like length.
        self._left = sorted(range(len(self._texts)), key=lambda at: -len(self._texts[at]))

    def step(self) -> list[Said]:
        """A batch of texts."""
        if self.wanted.cancelled:
            return self._fail("cancelled", "cancelled")
        taken = self._next()
        try:
            pooled = self._encode(taken) if not self._model.generates else self._read_through(self._texts[taken[0]])
        except InterruptedPassError:
            return self._fail("cancelled", "cancelled")
        if self._order.normalize:
            pooled = pooled / pooled.norm(dim=1, keepdim=True).clamp(min=_NORM_MIN)
        if not torch.isfinite(pooled).all():
            return self._fail("generation_failed", "cannot go on: the model computed no finite numbers")
        for at, vector in zip(taken, pooled.tolist(), strict=True):
            self._vectors[at] = vector
        if self._left:
            return [Prefilling(self.request, len(self._texts) - len(self._left), len(self._texts))]
        self.ended = True
        return [
            Embedded(
                request=self.request,
                vectors=self._vectors,
                pooling=self._model.sentences.pooling,
                prompt_tokens=sum(map(len, self._texts)),
                truncated_tokens=self._truncated,
                compute_ms=(time.perf_counter() - self._start_s) * 1000,
            )
        ]

    def _next(self) -> list[int]:
        """The next texts: one, and more while they fit the batch, padded to the longest."""
        taken = [self._left.pop()]
        while self._left and not self._model.generates:
            longest = len(self._texts[self._left[-1]])
            if longest * (len(taken) + 1) > self._model.batch:
                break
            taken.append(self._left.pop())
        return taken

    def _encode(self, taken: list[int]) -> Any:
        rows = [self._texts[at] for at in taken]
        longest = max(map(len, rows))
        pad = self._model.vocabulary.pad
        padded = [row + [pad] * (longest - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        states = self._model.encoded(padded, mask, self.wanted)
        pooling = self._model.sentences.pooling
        if pooling == "cls":
            return states[:, 0]
        if pooling == "last":
            return torch.stack([states[at, len(row) - 1] for at, row in enumerate(rows)])
        weights = torch.tensor(mask, dtype=states.dtype)[..., None]
        return (states * weights).sum(1) / weights.sum(1)

    def _read_through(self, tokens: list[int]) -> Any:
        cache = self._model.cache()
        pooling = self._model.sentences.pooling
        total: Any = 0
        for start in range(0, len(tokens), self._model.batch):
            states = self._model.states(tokens[start : start + self._model.batch], cache, self.wanted)
            if pooling == "cls":
                return states[:1]
            total = states[-1:] if pooling == "last" else total + states.sum(0, keepdim=True)
        return total if pooling == "last" else total / len(tokens)

    def _fail(self, code: str, message: str) -> list[Said]:
        self.ended = True
        return [GenerationFailed(self.request, code, message)]
