"""How likely a text is: the log-probability of each of its tokens after those before it.

As one sequence after a context, or in windows of which each second half is scored (perplexity as llama.cpp and others
measure it). Called by `batch`, a piece at a time.
"""

import time

import numpy as np

from h2qd.wire.workers import ChosenToken, Prefilling, Scored, ScoreText
from h2qd.worker.engine import EngineError, Said
from h2qd.worker.prompt import CHARS_PER_TOKEN_MAX
from h2qd.worker.torch.model import Model
from h2qd.worker.torch.sampler import bounded, log_softmax
from h2qd.worker.torch.work import Work

PIECE_TOKENS = 16
"""Tokens that are computed at a time, because the logits of all of them are needed: a vocabulary each."""


class Scoring(Work):
    """Answers `order`. Raises `EngineError` (context_overflow, invalid_request)."""

    def __init__(self, order: ScoreText, model: Model, start_s: float) -> None:
        super().__init__(order.request, order.priority)
        self._order = order
        self._model = model
        self._start_s = start_s
        if order.window is None and len(order.context) + len(order.text) > model.ctx * CHARS_PER_TOKEN_MAX:
            raise EngineError("context_overflow", f"cannot score so much text at once: the context holds {model.ctx}")
        vocabulary = model.vocabulary
        first = [vocabulary.bos] if vocabulary.adds_bos and vocabulary.bos is not None else []
        text = vocabulary.tokenize(order.text, special=False)
        before = first + (vocabulary.tokenize(order.context, special=False) if order.context else [])
        if order.window is None:
            # Each sequence, and from which of its tokens on it is scored; the very first has nothing before it.
            self._sequences = [(before + text, max(1, len(before)))]
        else:
            size = order.window - len(first)
            starts = range(0, len(text) - size + 1, max(1, size))
            self._sequences = [(first + text[at : at + size], order.window // 2) for at in starts] if size > 1 else []
        longest = max((len(tokens) for tokens, _ in self._sequences), default=0)
        if longest > model.ctx:
            raise EngineError(
                "context_overflow", f"cannot score {longest} tokens at once: the context holds {model.ctx}"
            )
        self._total = sum(len(tokens) for tokens, _ in self._sequences)
        if not any(len(tokens) > start for tokens, start in self._sequences):
            raise EngineError("invalid_request", "cannot score the text: it is too short")
        self._windows = len(self._sequences) if order.window is not None else 0
        self._at = 0  # of the first sequence that is left
        self._scored = 0  # up to here it was scored, before a pause
        self._done = 0
        self._count, self._sum, self._squares = 0, 0.0, 0.0
        self._told: list[ChosenToken] = []

    @property
    def ready(self) -> int:
        """See `Work`: what is left of a sequence, but not all at once."""
        return min(PIECE_TOKENS, len(self._sequences[0][0]) - self._at)

    def pause(self) -> None:
        """See `Work`."""
        self._scored = max(self._scored, self._at)
        self._done -= self._at
        self._at = 0
        super().pause()

    def step(self, count: int) -> list[Said]:
        """A piece of a sequence."""
        self._piece(count)
        if not np.isfinite(self._sum):
            return self.no_numbers()
        if self._sequences:
            return [Prefilling(self.request, self._done, self._total)]
        self.ended = True
        return [
            Scored(
                request=self.request,
                tokens=self._count,
                logprob=bounded(self._sum),
                squares=self._squares,
                windows=self._windows,
                logprobs=self._told,
                compute_ms=(time.perf_counter() - self._start_s) * 1000,
            )
        ]

    def _piece(self, count: int) -> None:
        if self._at == 0:
            self.cells.clear()
        tokens, start = self._sequences[0]
        piece = tokens[self._at : self._at + count]
        rows = self._model.logits(piece, self.cells, len(piece), self.wanted)
        for offset, row in enumerate(log_softmax(rows.numpy().astype(np.float64))):
            follows = self._at + offset + 1
            if max(start, self._scored + 1) <= follows < len(tokens):
                self._score(tokens[follows], float(row[tokens[follows]]))
        self._at += len(piece)
        self._done += len(piece)
        if self._at == len(tokens):
            del self._sequences[0]
            self._at, self._scored = 0, 0

    def _score(self, token: int, logarithm: float) -> None:
        self._count += 1
        self._sum += logarithm
        self._squares += logarithm * logarithm
        if self._order.logprobs:
            self._told.append(ChosenToken(token, self._model.vocabulary.piece(token), bounded(logarithm)))
