"""One request: its prompt into the cache piece by piece, then token by token, to its one last message.

Called by `batch`, which computes and decides whose turn it is; a slot says what it has to compute and what became of
it. It works in the cache where it is seated; one that pauses keeps its text, and computes it again elsewhere.
Invariant: a slot ends exactly once, with `Generated` or `GenerationFailed`, and has freed its chooser then.
"""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from h2qd.wire.workers import Generate, Generated, GenerationFailed, Prefilling, Text
from h2qd.worker.engine import Said
from h2qd.worker.llama.context import ABORTED, NO_ROOM, Cache, DecodeError, Piece
from h2qd.worker.llama.detokenizer import Detokenizer
from h2qd.worker.llama.overflow import Fit, Gap, gap
from h2qd.worker.llama.sampler import BrokenLogitsError, Chooser, GrammarTooSlowError, NoTokenLeftError
from h2qd.worker.llama.vocabulary import Vocabulary

_NOWHERE = -1

TOLD_S_MIN = 0.2
"""Progress of a prefill is told at most this often."""


class Slot:
    """Answers `order`, whose prompt is `prompt`: at least one token, and room in `size` for one more.

    `cancelled` may be set from any thread. `start_s` (perf_counter) is when the request came. `served` and `arrived`
    belong to who decides whose turn it is.
    """

    def __init__(
        self,
        order: Generate,
        prompt: Fit,
        size: int,
        vocabulary: Vocabulary,
        chooser: Chooser,
        start_s: float,
    ) -> None:
        self.request = order.request
        self.priority = order.priority
        self.session = order.session
        self.cache = Cache(_NOWHERE)
        self.arrived = 0
        self.cancelled = False
        self.ended = False
        self.broken = False  # the model computed no finite numbers
        self.served = 0
        self._order = order
        self._prompt = prompt
        self._text = list(prompt.tokens)  # what is to be in the cache when the next token is chosen
        self._prefill = len(self._text)  # so many first ones of it come in pieces
        self._size = size
        self._cached: int | None = None
        self._vocabulary = vocabulary
        self._chooser = chooser
        self._detokenizer = Detokenizer(order.stop)
        self._shifts = order.overflow == "shift"
        self._tokens_max = order.max_tokens if self._shifts else min(order.max_tokens, size - len(self._text))
        self._tokens = 0
        self._untold = 0  # tokens whose text was held back, or is on its way
        self._last = 0  # the token chosen last: in the answer, not yet in the cache
        self._start_s = self._told_s = start_s
        self._prefill_s = self._prefilled_s = self._first_token_s = 0.0  # 0: not yet

    def seat(self, cache: Cache) -> None:
        """Go on in `cache`, which holds the first tokens of `text` and nothing else."""
        self.cache = cache
        if self._cached is None:
            self._cached = len(cache.tokens)

    def pause(self) -> None:
        """Leave the cache; all of the text is to be computed again, also the answer so far."""
        if self.gap is not None:  # or it would not fit
            self.shifted(self.gap)
        self.cache = Cache(_NOWHERE)
        self._prefill = len(self._text)

    @property
    def text(self) -> Sequence[int]:
        """What is to be in the cache when the next token is chosen: the prompt and the answer so far."""
        return self._text

    @property
    def rest(self) -> int:
        """How many tokens are to be computed in pieces; 0: the next thing is a token of the answer."""
        return max(0, self._prefill - len(self.cache.tokens))

    @property
    def gap(self) -> Gap | None:
        """What has to go from the cache before the next token of the answer; None: there is room."""
        if not self._shifts or len(self.cache.tokens) < self._size:
            return None
        return gap(self._size, self._prompt.beginning)

    def shifted(self, gap: Gap) -> None:
        """What `gap` said is gone."""
        del self._text[gap.start : gap.start + gap.length]
        self._prefill = 0

    def next_of_prompt(self, count: int) -> Piece:
        """The next `count` tokens of the text."""
        if self._prefill_s == 0:
            self._prefill_s = time.perf_counter()
        done = len(self.cache.tokens)
        return Piece(self.cache, self._text[done : done + count], count == self.rest and self._tokens_max > 0)

    def next_of_answer(self) -> Piece:
        """The token chosen last."""
        return Piece(self.cache, (self._last,), wanted=True)

    def prefilled(self) -> list[Said]:
        """A piece was computed after which more of the prompt is to come: how far it is, now and then."""
        now_s = time.perf_counter()
        if self._tokens or now_s - self._told_s < TOLD_S_MIN:  # after a pause it is no longer the prompt
            return []
        self._told_s = now_s
        return [Prefilling(self.request, len(self.cache.tokens), self._prefill)]

    def prompt_ended(self) -> list[Said]:
        """The prompt is in the cache; where a token is wanted, `choose` comes next."""
        self._prefilled_s = self._prefilled_s or time.perf_counter()
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
        self._text.append(token)
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
            prompt_tokens=len(self._prompt.tokens),
            completion_tokens=self._tokens,
            cached_tokens=self._cached or 0,
            prefill_ms=((self._prefilled_s or end_s) - (self._prefill_s or end_s)) * 1000,
            first_token_ms=(first_s - self._start_s) * 1000,
            decode_ms=(end_s - first_s) * 1000,
            truncated_tokens=self._prompt.truncated,
        )
        return [*said, generated]

    def _fail(self, code: str, message: str) -> list[Said]:
        self._end()
        return [GenerationFailed(self.request, code, message)]

    def _end(self) -> None:
        self.ended = True
        self._chooser.close()
