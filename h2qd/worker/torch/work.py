"""What is at work: the interface that `batch` has to a request, of whatever kind.

A request says how much it has to compute and does it when told to, in the cells of the slot where it is seated; whose
turn it is, and how much a pass holds, is `batch`'s to say. Kinds: `generation` (an answer, whose tokens are computed
together with those of others), `scoring` and `vectors`. Invariant: work ends exactly once, with its one last message,
and `ended` is true then.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from h2qd.wire.workers import GenerationFailed
from h2qd.worker.engine import Said
from h2qd.worker.torch.cache import Cells
from h2qd.worker.torch.model import Wanted


class Work(ABC):
    """One request. `served` and `arrived` belong to who decides whose turn it is.

    `session` is the key of the one that it belongs to, if any. `broken`: the model computed no finite numbers.
    """

    def __init__(self, request: int, priority: int, session: str = "") -> None:
        self.request = request
        self.priority = priority
        self.session = session
        self.wanted = Wanted()
        self.ended = False
        self.broken = False
        self.arrived = 0
        self.served = 0
        self._cells: Cells | None = None

    @property
    def cells(self) -> Cells:
        """Where it works; only while it is seated."""
        if self._cells is None:
            raise RuntimeError("it has no slot")
        return self._cells

    @property
    def text(self) -> Sequence[int]:
        """The tokens that cells may hold already where it is seated; empty: it begins with nothing."""
        return ()

    def seat(self, cells: Cells) -> None:
        """Work in `cells`, which hold the first tokens of `text` and nothing else."""
        self._cells = cells

    @property
    @abstractmethod
    def ready(self) -> int:
        """How many tokens its next pass may hold, a pass of its own; 0: it goes on with a token, beside others."""

    @abstractmethod
    def step(self, count: int) -> list[Said]:
        """A pass of the next `count` of what is `ready`. Raises `InterruptedPassError`."""

    def pause(self) -> None:
        """Leave the cells: what was computed is given up, but not what was said. The rest goes on elsewhere."""
        self._cells = None

    def cancel(self) -> list[Said]:
        """End it as it was asked to."""
        return self.fail("cancelled", "cancelled")

    def no_numbers(self) -> list[Said]:
        """End it, for the model computed no finite numbers: nobody may go on from them."""
        self.broken = True
        return self.fail("generation_failed", "cannot go on: the model computed no finite numbers")

    def fail(self, code: str, message: str) -> list[Said]:
        """End it without a result."""
        self.ended = True
        return [GenerationFailed(self.request, code, message)]
