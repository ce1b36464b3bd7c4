"""One request: its prompt into the cache piece by piece, then token by token, to its one last message.

Called by `batch`, which computes and decides whose turn it is; a slot says what it has to compute and what became of
it. It works in the cache where it is seated; one that pauses keeps its text, and computes it again elsewhere.
Invariant: a slot ends exactly once, with `Generated` or `GenerationFailed`, and has freed its chooser then.
"""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from h2qd.wire.workers import ChosenToken, Generate, Generated, GenerationFailed, Prefilling, Text
from h2qd.worker.detokenizer import Detokenizer
from h2qd.worker.engine import Said
from h2qd.worker.llama.adapters import NONE, Used
from h2qd.worker.llama.context import ABORTED, NO_ROOM, Cache, DecodeError, Piece
from h2qd.worker.llama.draft_model import DraftModel
from h2qd.worker.llama.drafts import Drafts
from h2qd.worker.llama.logprobs import Likelihoods
from h2qd.worker.llama.overflow import Fit, Gap, gap
from h2qd.worker.llama.sampler import BrokenLogitsError, Chooser, GrammarTooSlowError, NoTokenLeftError
from h2qd.worker.llama.vocabulary import Vocabulary
from h2qd.worker.llama.work import NOWHERE, TOLD_S_MIN


class Slot:
    """`Work` that answers `order`, whose prompt is `prompt`: at least one token, and room in `size` for one more.

    `cancelled` may be set from any thread. `start_s` (perf_counter) is when the request came. `served` and `arrived`
    belong to who decides whose turn it is. `draft_model` guesses too, where there is one.
    """

    def __init__(
        self,
        order: Generate,
        prompt: Fit,
        size: int,
        vocabulary: Vocabulary,
        chooser: Chooser,
        adapters: Used,
        start_s: float,
        draft_model: DraftModel | None = None,
    ) -> None:
        self.request = order.request
        self.priority = order.priority
        self.session = order.session
        self.adapters = adapters
        self.cache = Cache(NOWHERE)
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
        self._likely: list[ChosenToken] = []  # of the untold tokens, where asked for
        self._drafts: Drafts | None = None
        self._draft_model = draft_model if adapters == NONE else None  # it knows of none
        self._draft: list[int] = []  # what is guessed to follow the last token
        self._guesser: Drafts | DraftModel | None = None  # whose guess that is
        self._drafted = self._accepted = 0
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
        self.cache = Cache(NOWHERE)
        self._prefill = len(self._text)
        self._draft = []

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

    @property
    def surplus(self) -> int:
        """Tokens in the cache that were guessed wrongly, or follow the end."""
        return len(self._draft)

    def ready(self, outputs: int) -> int:
        """All of the rest: an output is wanted of its last token only."""
        del outputs
        return self.rest

    def next_of_prompt(self, count: int) -> Piece:
        """The next `count` tokens of the text."""
        if self._prefill_s == 0:
            self._prefill_s = time.perf_counter()
        self._draft = []
        done = len(self.cache.tokens)
        return Piece(self.cache, self._text[done : done + count], int(count == self.rest and self._tokens_max > 0))

    def next_of_answer(self, drafts: int) -> Piece:
        """The token chosen last, and at most so many that are guessed to follow."""
        self._draft = []
        if drafts and self._order.speculate:
            self._guess(drafts)
            self._drafted += len(self._draft)
        return Piece(self.cache, (self._last, *self._draft), 1 + len(self._draft))

    def _guess(self, count: int) -> None:
        """What was said before comes first: it costs nothing to look up."""
        if self._drafts is None:
            self._drafts = Drafts(self._text)
        self._draft, self._guesser = self._drafts.draft(count), self._drafts
        if not self._draft and self._draft_model is not None:
            left = self._tokens_max - self._tokens - 1
            self._draft, self._guesser = self._draft_model.draft(self._text, min(count, left)), self._draft_model

    def computed(self, outputs: Sequence[NDArray[np.float32]]) -> list[Said]:
        """See `Work`: more of the prompt, its end, or tokens to choose."""
        if self.rest:
            return self.prefilled()
        said = self.prompt_ended() if self._prefilled_s == 0 else []
        return said if self.ended else said + self._choose_in_turn(outputs)

    def _choose_in_turn(self, outputs: Sequence[NDArray[np.float32]]) -> list[Said]:
        """Choose the next token, and go on as long as it is what was guessed; `surplus` is what is left."""
        said: list[Said] = []
        guessed = len(self._draft)
        accepted = 0
        for logits in outputs:
            said += self.choose(logits)
            if self.ended or not self._draft or self._draft[0] != self._last:
                break
            del self._draft[0]
            accepted += 1
        self._accepted += accepted
        if guessed and self._guesser is not None:
            self._guesser.checked(guessed, accepted)
        return said

    def prefilled(self) -> list[Said]:
        """A piece was computed after which more of the prompt is to come: how far it is, now and then."""
        now_s = time.perf_counter()
        if self._tokens or now_s - self._told_s < TOLD_S_MIN:  # after a pause it is no longer the prompt
            return []
        self._told_s = now_s
        return [Prefilling(self.request, len(self.cache.tokens), self._prefill)]

    def prompt_ended(self) -> list[Said]:
        """The prompt is in the cache; where a token is wanted, `choose` comes next."""
        self._prefilled_s = time.perf_counter()
        return self._finish("length") if self._tokens_max <= 0 else []

    def choose(self, logits: NDArray[np.float32]) -> list[Said]:
        """Choose a token by `logits`, which may be changed by that."""
        likelihoods = Likelihoods(logits, self._order.logprobs) if self._order.logprobs is not None else None
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
        if likelihoods is not None and not self._vocabulary.is_end(token):
            self._likely.append(likelihoods.told(token, self._vocabulary))
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
        if self._drafts is not None:
            self._drafts.add(token)
        self._tokens += 1
        self._untold += 1
        said = self._tell(self._detokenizer.feed(self._vocabulary.piece(token)))
        if self._detokenizer.stopped:
            said += self._finish("stop_string")
        elif self._tokens == self._tokens_max:
            said += self._finish("length")
        return said

    def _tell(self, text: str) -> list[Said]:
        return self._tell_all(text) if text else []

    def _tell_all(self, text: str) -> list[Said]:
        tokens, self._untold = self._untold, 0
        likely, self._likely = self._likely, []
        return [Text(self.request, text, tokens, likely)]

    def _finish(self, finish: str) -> list[Said]:
        end_s = time.perf_counter()
        self._end()
        text = self._detokenizer.finish()
        said = self._tell_all(text) if text or self._likely else []
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
            drafted_tokens=self._drafted,
            accepted_tokens=self._accepted,
        )
        return [*said, generated]

    def _fail(self, code: str, message: str) -> list[Said]:
        self._end()
        return [GenerationFailed(self.request, code, message)]

    def _end(self) -> None:
        self.ended = True
        self._chooser.close()
