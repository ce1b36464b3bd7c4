"""Guesses what follows in a text from what followed before in it: prompt lookup, speculation without a second model.

Pure. Called by `slot`; a guess is checked by computing all of it in one pass, and only what the model chooses itself
is kept. Answers that repeat their prompt (edits of code, extraction) win; others must not lose: only long guesses
after long matches pay, after wrong ones it is silent for longer and longer, and what it has lost by them, counted in
passes, stays a small share of the answer. Rows of one pass round otherwise than a row alone (see `context`), so
where two tokens are nearly as likely, another one may come than without guesses; how likely each is stays the same.
Invariant: a guess is a function of the tokens and earlier guesses alone, so the same seed gives the same text.
"""

from array import array
from collections.abc import Sequence

DRAFT_TOKENS = 7
"""In a guess: with the token before it, a full block of the CPU's kernels."""

MATCH_TOKENS = 12
"""So many tokens in a row must have come before, the first time."""

ACCEPTED_MIN = 4
"""A guess of which fewer come true costs time."""

PASS_COST = 4.6
"""A pass of 8 tokens, in passes of one (measured on 2 cores; 3.4 to 4.6 with what else goes on)."""

LOST_SHARE_MAX = 0.04
"""Of the passes that an answer would take without guesses; one wrong guess is free."""

QUIET_TOKENS = 32
QUIET_TOKENS_MAX = 4096
"""For so long it is silent after a wrong guess, twice as long after each further one."""

_ENTRIES = 2**15
"""Of the table of what came before; later entries replace earlier ones, also by chance."""


class Drafts:
    """Knows `tokens`, and those that are added."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._follows = array("i", bytes(4 * _ENTRIES))
        self._quiet = 0
        self._pause = QUIET_TOKENS
        self._lost = 0.0  # passes by wrong guesses, less what right ones gained
        for token in tokens:
            self.add(token)
        self._answer_start = len(self._tokens)

    def add(self, token: int) -> None:
        """One more token of the text."""
        tokens = self._tokens
        if len(tokens) >= MATCH_TOKENS:
            self._follows[self._entry()] = len(tokens)
        tokens.append(token)
        if self._quiet:
            self._quiet -= 1

    def draft(self, count: int) -> list[int]:
        """At most `count` tokens that may follow; mostly none."""
        tokens = self._tokens
        if self._quiet or count < ACCEPTED_MIN or len(tokens) < MATCH_TOKENS or not self._affordable:
            return []
        start = self._follows[self._entry()]
        if start < MATCH_TOKENS or tokens[start - MATCH_TOKENS : start] != tokens[-MATCH_TOKENS:]:
            return []
        period = len(tokens) - start
        drafted = tokens[start : start + min(count, DRAFT_TOKENS)]
        while len(drafted) < min(count, DRAFT_TOKENS):  # what followed reaches into the end: it goes on in circles
            drafted.append(drafted[-period])
        return drafted

    def checked(self, guessed: int, accepted: int) -> None:
        """So many of the tokens drafted last came true; they are added by now."""
        del guessed
        self._lost += PASS_COST - (accepted + 1)
        if accepted < ACCEPTED_MIN:
            self._quiet, self._pause = self._pause, min(2 * self._pause, QUIET_TOKENS_MAX)
        else:
            self._pause = QUIET_TOKENS

    @property
    def _affordable(self) -> bool:
        """Whether the next guess may be all wrong."""
        share = LOST_SHARE_MAX * (len(self._tokens) - self._answer_start)
        return self._lost <= 0 or self._lost + PASS_COST - 1 <= share

    def _entry(self) -> int:
        return hash(tuple(self._tokens[-MATCH_TOKENS:])) % _ENTRIES
