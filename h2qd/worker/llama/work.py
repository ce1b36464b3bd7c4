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
from h2qd.worker.llama.adapters import Used
from h2qd.worker.llama.context import Cache, DecodeError, Piece
from h2qd.worker.llama.overflow import Gap

NOWHERE = -1
"""The sequence of a cache that is none: that of work without a place."""

TOLD_S_MIN = 0.2
"""Progress of a prefill is told at most this often."""


class Work(Protocol):
    """One request at work in `cache`; all it has to compute there follows from what that holds.

    `priority` as in `messages.Priority`, `session` is empty where there is none, and so are `adapters`.
    `cancelled` may be set from any thread. `broken`: the model computed no finite numbers. `served` and `arrived`
    belong to who decides whose turn it is.
    """

    request: int
    priority: int
    session: str
    adapters: Used
    arrived: int
    cache: Cache
    cancelled: bool
    ended: bool
    broken: bool
    served: int

    @property
    def text(self) -> Sequence[int]:
        """The tokens that a cache may hold already where it is seated; empty: it begins with nothing."""
        ...

    def seat(self, cache: Cache) -> None:
        """Go on in `cache`, which holds the first tokens of `text` and nothing else."""
        ...

    def pause(self) -> None:
        """Leave the cache: what was in it is to be computed again elsewhere."""
        ...

    @property
    def gap(self) -> Gap | None:
        """What has to go from the cache before the next token; None: there is room."""
        ...

    def shifted(self, gap: Gap) -> None:
        """What `gap` said is gone."""
        ...

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
