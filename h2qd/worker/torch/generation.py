"""One answer: its prompt into the cells of its slot piece by piece, then token by token, to its end.

Called by `batch`, which decides whose turn it is, and computes the tokens of several answers together. One that
pauses keeps its text and its chooser, and computes the text again.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from h2qd.wire.workers import ChosenToken, Generate, Generated, Prefilling, Text
from h2qd.worker.detokenizer import Detokenizer
from h2qd.worker.engine import Said
from h2qd.worker.torch.cache import Cells
from h2qd.worker.torch.grammar import BrokenGrammarError
from h2qd.worker.torch.model import Model, Row
from h2qd.worker.torch.sampler import BrokenLogitsError, Chooser, NoTokenLeftError, likely
from h2qd.worker.torch.work import Work

_TOLD_S_MIN = 0.2
"""Progress of a prefill is told at most this often."""


class Generation(Work):
    """Answers `order`, whose prompt is `prompt`: at least one token, and room for one more."""

    def __init__(
        self, order: Generate, prompt: Sequence[int], model: Model, chooser: Chooser, start_s: float
    ) -> None:
        super().__init__(order.request, order.priority, order.session)
        self._order = order
        self._text = list(prompt)  # what is to be in the cache when the next token is chosen
        self._prompt_tokens = self._prefill = len(self._text)  # so many first ones of it come in pieces
        self._cached: int | None = None  # so many were there already
        self._model = model
        self._chooser = chooser
        self._detokenizer = Detokenizer(order.stop)
        self._stream = model.vocabulary.stream()
        self._tokens_max = min(order.max_tokens, model.ctx - len(prompt))
        self._tokens = 0
        self._untold: list[ChosenToken] = []
        self._untold_tokens = 0
        self._start_s = self._told_s = start_s
        self._prefill_s = self._prefilled_s = self._first_token_s = 0.0  # 0: not yet

    @property
    def ready(self) -> int:
        """What is left of the pieces."""
        return max(0, self._prefill - len(self.cells.tokens))

    @property
    def text(self) -> Sequence[int]:
        """The prompt, and the answer so far."""
        return self._text

    def seat(self, cells: Cells) -> None:
        """See `Work`."""
        super().seat(cells)
        if self._cached is None:
            self._cached = len(cells.tokens)

    def step(self, count: int) -> list[Said]:
        """A piece; after the last one the next token is chosen."""
        if self._prefill_s == 0:
            self._prefill_s = time.perf_counter()
        done = len(self.cells.tokens)
        piece = self._text[done : done + count]
        if count == self.ready and self._tokens_max > 0:
            logits = self._model.logits(piece, self.cells, 1, self.wanted)[0]
            self._prefilled_s = self._prefilled_s or time.perf_counter()
            return self._choose(logits)
        self._model.fill(piece, self.cells, self.wanted)
        now_s = time.perf_counter()
        if not self.ready:
            self._prefilled_s = now_s
            return self._finish("length")
        if self._tokens or now_s - self._told_s < _TOLD_S_MIN:  # after a pause it is no longer the prompt
            return []
        self._told_s = now_s
        return [Prefilling(self.request, len(self.cells.tokens), self._prefill)]

    @property
    def row(self) -> Row:
        """Its part in a pass that computes the token chosen last."""
        return Row(self._text[-1], self.cells, self.wanted)

    def computed(self, logits: Any) -> list[Said]:
        """Its row was computed: choose the next token."""
        return self._choose(logits)

    def pause(self) -> None:
        """See `Work`."""
        super().pause()
        self._prefill = len(self._text)

    def cancel(self) -> list[Said]:
        """See `Work`: what was said by then is an answer."""
        return self._finish("cancelled")

    def _choose(self, row: Any) -> list[Said]:
        logits = row.numpy().astype(np.float64)
        untouched = logits.copy() if self._order.logprobs is not None else logits
        try:
            token = self._chooser.choose(logits)
        except NoTokenLeftError:
            return self._finish("stop")
        except BrokenGrammarError:
            return self.fail("invalid_grammar", "cannot go on: the grammar takes too long, it is too ambiguous")
        except BrokenLogitsError:
            return self.no_numbers()
        if self._tokens == 0:
            self._first_token_s = time.perf_counter()
        if token in self._model.vocabulary.ends:
            return self._finish("stop")
        self._text.append(token)
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
        self.ended = True
        said = self._tell(self._detokenizer.finish())
        if self._detokenizer.stopped and finish == "stop":
            finish = "stop_string"  # the end of the text completed it
        if self._untold:
            said.append(Text(self.request, "", self._untold_tokens, self._untold))
        first_s = self._first_token_s or end_s
        generated = Generated(
            request=self.request,
            finish=finish,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._tokens,
            cached_tokens=self._cached or 0,
            prefill_ms=((self._prefilled_s or end_s) - (self._prefill_s or end_s)) * 1000,
            first_token_ms=(first_s - self._start_s) * 1000,
            decode_ms=(end_s - first_s) * 1000,
        )
        return [*said, generated]
