"""What is at work: the interface that `batch` has to a request, of whatever kind.

A request says how much it has to compute and does it when told to; whose turn it is, and how much a pass holds, is
`batch`'s to say. Kinds: `generation` (an answer, whose tokens are computed together with those of others), `scoring`
and `vectors`. Invariant: work ends exactly once, with its one last message, and `ended` is true then.
"""

from abc import ABC, abstractmethod

from h2qd.wire.workers import GenerationFailed
from h2qd.worker.engine import Said
from h2qd.worker.torch.model import Wanted


class Work(ABC):
    """One request. `served` and `arrived` belong to who decides whose turn it is."""

    def __init__(self, request: int, priority: int) -> None:
        self.request = request
        self.priority = priority
        self.wanted = Wanted()
        self.ended = False
        self.arrived = 0
        self.served = 0

    @property
    @abstractmethod
    def ready(self) -> int:
        """How many tokens its next pass may hold, a pass of its own; 0: it goes on with a token, beside others."""

    @abstractmethod
    def step(self, count: int) -> list[Said]:
        """A pass of the next `count` of what is `ready`. Raises `InterruptedPassError`."""

    @abstractmethod
    def pause(self) -> None:
        """Give up what is computed, but not what was said: the rest goes on later."""

    def cancel(self) -> list[Said]:
        """End it as it was asked to."""
        return self.fail("cancelled", "cancelled")

    def fail(self, code: str, message: str) -> list[Said]:
        """End it without a result."""
        self.ended = True
        return [GenerationFailed(self.request, code, message)]
