"""What is at work on a sequence of the cache: the interface that `batch` has to a request, of whatever kind.

A request says what it has to compute and is told what came of it; whose turn it is, and how much a pass holds, is
`batch`'s to say. Kinds: `slot` (an answer), `scoring` (how likely a text is), `vectors` (texts to vectors).
Invariant: work ends exactly once, with its one last message, and `ended` is true then.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from h2qd.worker.engine import Said
from h2qd.worker.llama.context import Cache, DecodeError, Piece

TOLD_S_MIN = 0.2
"""Progress of a prefill is told at most this often."""


class Work(Protocol):
    """One request at work in `cache`; all it has to compute there follows from what that holds.

    `cancelled` may be set from any thread. `broken`: the model computed no finite numbers. `served` belongs to who
    decides whose turn it is.
    """

    request: int
    cache: Cache
    cancelled: bool
    ended: bool
    broken: bool
    served: int

    @property
    def rest(self) -> int:
        """How many tokens are to be computed that are known by now; 0: it goes on token by token."""
        ...

    @property
    def surplus(self) -> int:
        """How many of the last tokens in the cache turned out not to belong there, after `computed`."""
        ...

    def ready(self, outputs: int) -> int:
        """How many of `rest` one piece may hold, when it may want so many outputs: at least one of each."""
        ...

    def next_of_prompt(self, count: int) -> Piece:
        """The next `count` of what is `ready`."""
        ...

    def next_of_answer(self, drafts: int) -> Piece:
        """The next token, and at most so many that are only guessed to follow it."""
        ...

    def computed(self, outputs: Sequence[NDArray[np.float32]]) -> list[Said]:
        """A piece was computed and is in the cache: its outputs, in order; they may be changed by this."""
        ...

    def cancel(self) -> list[Said]:
        """End it as it was asked to."""
        ...

    def undecoded(self, error: DecodeError) -> list[Said]:
        """What was to be computed was not: end it."""
        ...

    def close(self) -> None:
        """Let go of it without a word, unless it has ended."""
        ...
