"""What becomes of a text that outgrows the context: which tokens of a prompt stay, which go while an answer grows.

Pure. Called by `engine` when a request comes, and by `slot` when its cache is full. Invariant: the beginning stays,
with the token that models expect there; what stays fits, with room for at least one more token.
"""

from collections.abc import Sequence
from typing import NamedTuple

from h2qd.wire.messages import Overflow

BEGINNING_SHARE = 4
"""One of so many parts of what fits is the beginning of the text: the task is told there, the rest is its latest."""

ANSWER_SHARE = 4
"""An answer gets room for one of so many parts of the context, where a prompt has to be cut."""


class Fit(NamedTuple):
    """A prompt that fits, the number of tokens left out of it, and how many of the first stay when it is shifted."""

    tokens: Sequence[int]
    truncated: int
    beginning: int


class Gap(NamedTuple):
    """`length` tokens from `start` on, which go."""

    start: int
    length: int


def fit(prompt: Sequence[int], size: int, tokens_max: int, overflow: Overflow) -> Fit | None:
    """What of `prompt` is answered in a context of `size` tokens; None: it does not fit and may not be cut.

    A prompt that is to be cut leaves room for `tokens_max` tokens, or as many as its share. One that is to be shifted
    needs no such room from the start, so it is cut only where it does not fit at all.
    """
    room = max(1, min(tokens_max, size // ANSWER_SHARE))
    fits = len(prompt) + (room if overflow == "truncate" else 1) <= size
    kept = prompt if fits else _without_middle(prompt, size - room)
    if not fits and overflow == "refuse":
        return None
    return Fit(kept, len(prompt) - len(kept), max(1, min(len(kept), size // BEGINNING_SHARE)))


def _without_middle(prompt: Sequence[int], length: int) -> Sequence[int]:
    beginning = max(1, length // BEGINNING_SHARE)
    return [*prompt[:beginning], *prompt[len(prompt) - (length - beginning) :]]


def gap(held: int, beginning: int) -> Gap:
    """What goes from a context that is full with `held` tokens: the older half of what follows the beginning."""
    return Gap(beginning, max(1, (held - beginning) // 2))
