"""A small model beside the large one: it guesses what comes next in the text of the one answer that decodes alone.

Called by `slot`, where `drafts` finds nothing in the text itself; `wager` decides whether and how much. It has a
context of its own, of one sequence: the first tokens of the text, and the latest. It catches up with a text piece by
piece, one between two tokens of the stream, so a stream hardly notices and a cancel need not wait. What passes take
is measured, so in which passes a token is computed is not foretold: with a draft, a seed's text is the same but for
rounding. Invariant: nothing that fails here costs more than the guesses.
"""

import time
from collections.abc import Sequence

from h2qd.worker import journal
from h2qd.worker.engine import Beat
from h2qd.worker.llama.context import Context, DecodeError, Piece
from h2qd.worker.llama.model import Model
from h2qd.worker.llama.wager import Wager
from h2qd.worker.placement import common

HEAD_TOKENS = 4
"""Of a text, kept where its middle is left out: models lean on a text's first tokens, whatever they are."""

FRESH_TOKENS = 128
"""It begins to follow a text with so many of its last tokens: what guesses are worth is seen from these."""

_CLOSE_TOKENS = 8
"""So many tokens that it has not seen are computed together with the first guess."""

_WEIGHINGS = 3
"""Passes that tell what a token takes; the first, which may have to read the file, does not count."""


class DraftModel:
    """Guesses with `model`, which has a context and must outlive this; `guesses_max` at a time."""

    def __init__(self, model: Model, beat: Beat, guesses_max: int) -> None:
        def interrupted() -> bool:
            beat.tick()
            return False

        self._context = Context(model, interrupted)
        self._cache = self._context.caches[0]
        self._wager = Wager(guesses_max)
        self._start = 0  # where in the text the latest tokens begin; 0: nothing is left out
        self._weights_s: list[float] = []
        self._failed = False

    def close(self) -> None:
        """Let go of what was allocated; not of the native context."""
        self._context.close()

    def draft(self, text: Sequence[int], count: int) -> list[int]:
        """At most `count` tokens that may follow `text`. To be asked once a pass; it takes a piece's time at most."""
        if self._failed or count <= 0 or self._wager.silent():
            return []
        try:
            if self._wager.measured:
                return self._draft(text, self._wager.count(count))
            self._weigh(text[-1])
        except DecodeError as error:
            self._failed = True
            journal.record("draft.failed", error)
        return []

    def passed(self, tokens: int, took_s: float) -> None:
        """A pass of the large model, over so many tokens of an answer alone, took so long."""
        self._wager.passed(tokens, took_s)

    def checked(self, guessed: int, accepted: int) -> None:
        """So many of the tokens guessed last came true."""
        self._wager.checked(guessed, accepted)

    def _draft(self, text: Sequence[int], count: int) -> list[int]:
        if count == 0:
            return []
        rest = self._rest(text, count)
        if len(rest) > _CLOSE_TOKENS:
            self._context.decode([Piece(self._cache, rest[: self._context.batch], 0)], interruptible=True)
            return []
        began_s = time.perf_counter()
        guessed = self._guess(rest, count)
        self._wager.drafted(count, time.perf_counter() - began_s)
        return guessed

    def _weigh(self, token: int) -> None:
        """Find out what a token takes, whichever it is."""
        self._context.clear(self._cache)
        began_s = time.perf_counter()
        ((row,),) = self._context.decode([Piece(self._cache, [token], 1)], interruptible=True)
        self._context.logits(row).argmax()
        self._weights_s.append(time.perf_counter() - began_s)
        if len(self._weights_s) == _WEIGHINGS:
            self._wager.drafted(1, min(self._weights_s[1:]))
            self._weights_s.clear()

    def _rest(self, text: Sequence[int], count: int) -> Sequence[int]:
        """What is to be computed before the first of `count` guesses: the cache holds what comes before that.

        Where that is too much, or the context too small, it begins anew with the last tokens of the text.
        """
        window = self._window(text)
        kept = common(self._cache.tokens, window[:-1])
        behind = len(window) - kept > HEAD_TOKENS + FRESH_TOKENS
        if (
            behind
            or len(window) + count > self._context.size
            or (self._start and len(text) - FRESH_TOKENS < self._start)
        ):
            start = len(text) - FRESH_TOKENS
            self._start = start if start > HEAD_TOKENS else 0
            window = self._window(text)
            kept = common(self._cache.tokens, window[:-1])
        if kept < len(self._cache.tokens) and not self._context.trim(self._cache, kept):
            kept = 0
        return window[kept:]

    def _window(self, text: Sequence[int]) -> Sequence[int]:
        return [*text[:HEAD_TOKENS], *text[self._start :]] if self._start else text

    def _guess(self, rest: Sequence[int], count: int) -> list[int]:
        guessed: list[int] = []
        while len(guessed) < count:
            ((row,),) = self._context.decode([Piece(self._cache, rest, 1)])
            guessed.append(int(self._context.logits(row).argmax()))
            rest = guessed[-1:]
        return guessed
