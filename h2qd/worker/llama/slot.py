"""One request at work: its prompt into the cache piece by piece, then token by token, to its one last message.

Called by `batch`, which computes and decides whose turn it is; a slot says what it has to compute and what became of
it. Invariant: a slot ends exactly once, with `Generated` or `GenerationFailed`, and has freed its chooser then.
"""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from h2qd.wire.workers import Generate, Generated, GenerationFailed, Prefilling, Text
from h2qd.worker.engine import Said
from h2qd.worker.llama.context import ABORTED, NO_ROOM, Cache, DecodeError, Piece
from h2qd.worker.llama.detokenizer import Detokenizer
from h2qd.worker.llama.sampler import BrokenLogitsError, Chooser, GrammarTooSlowError, NoTokenLeftError
from h2qd.worker.llama.vocabulary import Vocabulary

TOLD_S_MIN = 0.2
"""Progress of a prefill is told at most this often."""


class Slot:
    """Answers `order`, whose prompt is `prompt`: at least one token, and room in `size` for one more.

    `cache` holds the first `cached` tokens of the prompt and nothing else. `cancelled` may be set from any thread.
    `start_s` (perf_counter) is when the request came. `served` belongs to who decides whose turn it is.
    """

    def __init__(
        self,
        order: Generate,
        prompt: Sequence[int],
        cache: Cache,
        size: int,
        vocabulary: Vocabulary,
        chooser: Chooser,
        start_s: float,
    ) -> None:
        self.request = order.request
        self.cache = cache
        self.cancelled = False
        self.ended = False
        self.broken = False  # the model computed no finite numbers
        self.served = 0
        self._order = order
        self._prompt = prompt
        self._cached = len(cache.tokens)
        self._vocabulary = vocabulary
        self._chooser = chooser
        self._detokenizer = Detokenizer(order.stop)
        self._tokens_max = min(order.max_tokens, size - len(prompt))
        self._tokens = 0
        self._untold = 0  # tokens whose text was held back, or is on its way
        self._last = 0  # the token chosen last: in the answer, not yet in the cache
        self._start_s = self._told_s = start_s
        self._prefill_s = self._prefilled_s = self._first_token_s = 0.0  # 0: not yet

    @property
    def rest(self) -> int:
        """How many tokens of the prompt are to be computed; 0: the next thing is a token of the answer."""
        return max(0, len(self._prompt) - len(self.cache.tokens))

    def next_of_prompt(self, count: int) -> Piece:
        """The next `count` tokens of the prompt."""
        if self._prefill_s == 0:
            self._prefill_s = time.perf_counter()
        done = len(self.cache.tokens)
        return Piece(self.cache, self._prompt[done : done + count], count == self.rest and self._tokens_max > 0)

    def next_of_answer(self) -> Piece:
        """The token chosen last."""
        return Piece(self.cache, (self._last,), wanted=True)

    def prefilled(self) -> list[Said]:
        """A piece was computed after which more of the prompt is to come: how far it is, now and then."""
        now_s = time.perf_counter()
        if now_s - self._told_s < TOLD_S_MIN:
            return []
        self._told_s = now_s
        return [Prefilling(self.request, len(self.cache.tokens), len(self._prompt))]

    def prompt_ended(self) -> list[Said]:
        """The prompt is in the cache; where a token is wanted, `choose` comes next."""
        self._prefilled_s = time.perf_counter()
        return self._finish("length") if self._tokens_max <= 0 else []

    def choose(self, logits: NDArray[np.float32]) -> list[Said]:
        """Choose a token by `logits`, which may be changed by that."""
        try:
            token = self._chooser.choose(logits)
        except NoTokenLeftError:
            if self._order.ignore_eos:  # nothing but the end was left
                return self._finish("stop")
            return self._fail("invalid_grammar", "cannot go on: no token of this model may follow")
        except GrammarTooSlowError:
            return self._fail("invalid_grammar", "cannot go on: the grammar takes too long, it is too ambiguous")
        except BrokenLogitsError:
            self.broken = True
            return self._fail("generation_failed", "cannot go on: the model computed no finite numbers")
        return self._take(token)

    def cancel(self) -> list[Said]:
        """End it as it was asked to."""
        return self._finish("cancelled")

    def undecoded(self, error: DecodeError) -> list[Said]:
        """What was to be computed was not."""
        if error.status == ABORTED:  # only a cancel aborts
            return self._finish("cancelled")
        code = "context_overflow" if error.status == NO_ROOM else "generation_failed"
        return self._fail(code, f"cannot go on: {error}")

    def close(self) -> None:
        """Let go of it without a word, unless it has ended."""
        if not self.ended:
            self._end()

    def _take(self, token: int) -> list[Said]:
        if self._tokens == 0:
            self._first_token_s = time.perf_counter()
        if self._vocabulary.is_end(token):
            return self._finish("stop")
        self._last = token
        self._tokens += 1
        self._untold += 1
        said = self._tell(self._detokenizer.feed(self._vocabulary.piece(token)))
        if self._detokenizer.stopped:
            said += self._finish("stop_string")
        elif self._tokens == self._tokens_max:
            said += self._finish("length")
        return said

    def _tell(self, text: str) -> list[Said]:
        if not text:
            return []
        tokens, self._untold = self._untold, 0
        return [Text(self.request, text, tokens)]

    def _finish(self, finish: str) -> list[Said]:
        end_s = time.perf_counter()
        self._end()
        said = self._tell(self._detokenizer.finish())
        if self._detokenizer.stopped and finish == "stop":
            finish = "stop_string"  # the end of the text completed it
        first_s = self._first_token_s or end_s
        generated = Generated(
            request=self.request,
            finish=finish,
            prompt_tokens=len(self._prompt),
            completion_tokens=self._tokens,
            cached_tokens=self._cached,
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
        self._chooser.close()
