"""One request at work: its prompt into the cache piece by piece, then token by token, to its one last message.

Called by `engine`, a step at a time. It does not decide who is served. Invariant: a slot ends exactly once, with
`Generated` or `GenerationFailed`, and has freed its chooser then.
"""

import time
from collections.abc import Sequence

from h2qd.wire.workers import Generate, Generated, GenerationFailed, Prefilling, Text
from h2qd.worker.engine import Said
from h2qd.worker.llama.context import ABORTED, NO_ROOM, Context, DecodeError
from h2qd.worker.llama.detokenizer import Detokenizer
from h2qd.worker.llama.model import BATCH_TOKENS
from h2qd.worker.llama.sampler import BrokenLogitsError, Chooser, GrammarTooSlowError, NoTokenLeftError
from h2qd.worker.llama.vocabulary import Vocabulary


class Slot:
    """Answers `order`, whose prompt is `prompt`: at least one token, and room in the context for one more.

    `cancelled` may be set from any thread. `start_s` (perf_counter) is when the request came.
    """

    def __init__(
        self,
        order: Generate,
        prompt: Sequence[int],
        context: Context,
        vocabulary: Vocabulary,
        chooser: Chooser,
        start_s: float,
    ) -> None:
        self.request = order.request
        self.cancelled = False
        self.ended = False
        self._order = order
        self._prompt = prompt
        self._context = context
        self._vocabulary = vocabulary
        self._chooser = chooser
        self._detokenizer = Detokenizer(order.stop)
        self._tokens_max = min(order.max_tokens, context.size - len(prompt))
        self._tokens = 0
        self._untold = 0  # tokens whose text was held back, or is on its way
        self._last = 0  # the token chosen last: in the answer, not yet in the cache
        self._cached: int | None = None  # None until the first step
        self._start_s = start_s
        self._prefill_s = self._prefilled_s = self._first_token_s = 0.0  # 0: not yet

    def step(self) -> list[Said]:
        """One piece of the prompt, or one token."""
        if self.cancelled:
            return self._finish("cancelled")
        try:
            if len(self._context.tokens) < len(self._prompt) or self._cached is None:
                return self._prefill()
            self._context.decode(self._last)
            return self._choose()
        except DecodeError as error:
            if error.status == ABORTED:  # only a cancel aborts
                return self._finish("cancelled")
            code = "context_overflow" if error.status == NO_ROOM else "generation_failed"
            return self._fail(code, f"cannot go on: {error}")
        except NoTokenLeftError:
            if self._order.ignore_eos:  # nothing but the end was left
                return self._finish("stop")
            return self._fail("invalid_grammar", "cannot go on: no token of this model may follow")
        except GrammarTooSlowError:
            return self._fail("invalid_grammar", "cannot go on: the grammar takes too long, it is too ambiguous")
        except BrokenLogitsError:
            return self._fail("generation_failed", "cannot go on: the model computed no finite numbers")

    def _prefill(self) -> list[Said]:
        if self._cached is None:
            self._prefill_s = time.perf_counter()
            self._cached = self._context.reuse(self._prompt)
        done = len(self._context.tokens)
        self._context.prefill(self._prompt[done : done + BATCH_TOKENS])
        done = len(self._context.tokens)
        said: list[Said] = []
        if len(self._prompt) - self._cached > BATCH_TOKENS:
            said.append(Prefilling(self.request, done, len(self._prompt)))
        if done == len(self._prompt):
            self._prefilled_s = time.perf_counter()
            said += self._choose() if self._tokens_max > 0 else self._finish("length")
        return said

    def _choose(self) -> list[Said]:
        token = self._chooser.choose(self._context.logits())
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
            cached_tokens=self._cached or 0,
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
