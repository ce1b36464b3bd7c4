"""One answer at work: its prompt into a KV cache of its own piece by piece, then token by token, to its end.

Called by `engine`, a step at a time. Invariant: it ends exactly once, with `Generated` or `GenerationFailed`.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from h2qd.wire.workers import ChosenToken, Generate, Generated, GenerationFailed, Prefilling, Text
from h2qd.worker.detokenizer import Detokenizer
from h2qd.worker.engine import Said
from h2qd.worker.torch.model import InterruptedPassError, Model, Wanted
from h2qd.worker.torch.sampler import BrokenLogitsError, Chooser, NoTokenLeftError, likely

_PIECE_TOKENS = 128
"""A prompt's piece: larger ones are hardly faster on a CPU, and others wait longer for their turn."""

_TOLD_S_MIN = 0.2
"""Progress of a prefill is told at most this often."""


class Generation:
    """Answers `order`, whose prompt is `prompt`: at least one token, and room for one more."""

    def __init__(
        self, order: Generate, prompt: Sequence[int], model: Model, chooser: Chooser, start_s: float
    ) -> None:
        self.request = order.request
        self.priority = order.priority
        self.wanted = Wanted()
        self.ended = False
        self._order = order
        self._prompt = prompt
        self._model = model
        self._chooser = chooser
        self._cache: Any = model.cache()
        self._done = 0
        self._detokenizer = Detokenizer(order.stop)
        self._stream = model.vocabulary.stream()
        self._tokens_max = min(order.max_tokens, model.ctx - len(prompt))
        self._last = 0
        self._tokens = 0
        self._untold: list[ChosenToken] = []
        self._untold_tokens = 0
        self._start_s = self._told_s = start_s
        self._prefill_s = self._prefilled_s = self._first_token_s = 0.0  # 0: not yet

    def step(self) -> list[Said]:
        """A piece of the prompt, or a token."""
        if self.wanted.cancelled:
            return self._finish("cancelled")
        try:
            if self._done < len(self._prompt):
                return self._prefill()
            return self._choose(self._model.logits([self._last], self._cache, 1, self.wanted))
        except InterruptedPassError:
            return self._finish("cancelled")

    def _prefill(self) -> list[Said]:
        if self._prefill_s == 0:
            self._prefill_s = time.perf_counter()
        piece = list(self._prompt[self._done : self._done + min(_PIECE_TOKENS, self._model.batch)])
        if self._done + len(piece) == len(self._prompt) and self._tokens_max > 0:
            logits = self._model.logits(piece, self._cache, 1, self.wanted)
            self._done += len(piece)
            self._prefilled_s = time.perf_counter()
            return self._choose(logits)
        self._model.fill(piece, self._cache, self.wanted)
        self._done += len(piece)
        now_s = time.perf_counter()
        if self._done == len(self._prompt):
            self._prefilled_s = now_s
            return self._finish("length")
        if now_s - self._told_s < _TOLD_S_MIN:
            return []
        self._told_s = now_s
        return [Prefilling(self.request, self._done, len(self._prompt))]

    def _choose(self, rows: Any) -> list[Said]:
        logits = rows[0].numpy().astype(np.float64)
        untouched = logits.copy() if self._order.logprobs is not None else logits
        try:
            token = self._chooser.choose(logits)
        except NoTokenLeftError:
            return self._finish("stop")
        except BrokenLogitsError:
            return self._fail("generation_failed", "cannot go on: the model computed no finite numbers")
        if self._tokens == 0:
            self._first_token_s = time.perf_counter()
        if token in self._model.vocabulary.ends:
            return self._finish("stop")
        self._last = token
        self._tokens += 1
        self._untold_tokens += 1
        if self._order.logprobs is not None:
            self._untold.append(likely(untouched, token, self._order.logprobs, self._model.vocabulary))
        said = self._tell(self._detokenizer.feed(self._stream.feed(token).encode("utf-8", "replace")))
        if self._detokenizer.stopped:
            said += self._finish("stop_string")
        elif self._tokens == self._tokens_max:
            said += self._finish("length")
        return said

    def _tell(self, text: str) -> list[Said]:
        if not text:
            return []
        said = Text(self.request, text, self._untold_tokens, self._untold)
        self._untold, self._untold_tokens = [], 0
        return [said]

    def _finish(self, finish: str) -> list[Said]:
        end_s = time.perf_counter()
        self._end()
        said = self._tell(self._detokenizer.finish())
        if self._detokenizer.stopped and finish == "stop":
            finish = "stop_string"  # the end of the text completed it
        if self._untold:
            said.append(Text(self.request, "", self._untold_tokens, self._untold))
        first_s = self._first_token_s or end_s
        generated = Generated(
            request=self.request,
            finish=finish,
            prompt_tokens=len(self._prompt),
            completion_tokens=self._tokens,
            cached_tokens=0,
            prefill_ms=((self._prefilled_s or end_s) - (self._prefill_s or end_s)) * 1000,
            first_token_ms=(first_s - self._start_s) * 1000,
            decode_ms=(end_s - first_s) * 1000,
        )
        return [*said, generated]

    def _fail(self, code: str, message: str) -> list[Said]:
        self._end()
        return [GenerationFailed(self.request, code, message)]

    def _end(self) -> None:
        self.ended = True
        self._cache = None
