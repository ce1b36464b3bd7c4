"""Texts that become vectors: pooled states of the last layer, a few texts at a time.

An encoder takes texts of like length together, padded, as many as the batch holds; a model that generates takes one
text after another, in pieces. Called by `batch`, a pass at a time. Invariant: every number of its vectors is finite.
"""

import time
from typing import Any

from h2qd.wire.workers import Embedded, EmbedTexts, Prefilling
from h2qd.worker.engine import EngineError, Said
from h2qd.worker.prompt import CHARS_PER_TOKEN_MAX
from h2qd.worker.torch.libraries import torch
from h2qd.worker.torch.model import Model
from h2qd.worker.torch.work import Work

_NORM_MIN = 1e-12


class Vectors(Work):
    """Answers `order`. Raises `EngineError` (context_overflow, invalid_request) for texts that it cannot take."""

    def __init__(self, order: EmbedTexts, model: Model, start_s: float) -> None:
        super().__init__(order.request, order.priority)
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
        self._at = 0  # of a text that is read in pieces
        self._pooled: Any = None

    @property
    def ready(self) -> int:
        """See `Work`; an encoder does whole texts, however few tokens it is given."""
        return len(self._texts[self._left[-1]]) - self._at

    def pause(self) -> None:
        """See `Work`."""
        super().pause()
        self._begin()

    def _begin(self) -> None:
        self._at, self._pooled = 0, None

    def step(self, count: int) -> list[Said]:
        """A batch of texts, or a piece of one."""
        if self._model.generates:
            taken = self._left[-1:]
            pooled = self._read_on(self._texts[taken[0]], count)
            if pooled is None:
                return []
            self._left.pop()
            self._begin()
        else:
            taken = self._next()
            pooled = self._encode(taken)
        if self._order.normalize:
            pooled = pooled / pooled.norm(dim=1, keepdim=True).clamp(min=_NORM_MIN)
        if not torch.isfinite(pooled).all():
            return self.no_numbers()
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
        while self._left:
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

    def _read_on(self, tokens: list[int], count: int) -> Any:
        """Read so many more of `tokens`; the pooled states once all that count are read, None before."""
        if self._at == 0:
            self.cells.clear()
        states = self._model.states(tokens[self._at : self._at + count], self.cells, self.wanted)
        self._at += count
        pooling = self._model.sentences.pooling
        if pooling == "cls":
            return states[:1]
        if pooling == "last":
            return states[-1:] if self._at == len(tokens) else None
        total = states.sum(0, keepdim=True)
        self._pooled = total if self._pooled is None else self._pooled + total
        return self._pooled / len(tokens) if self._at == len(tokens) else None
