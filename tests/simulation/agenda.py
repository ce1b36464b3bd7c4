"""An agenda: what will happen when, in virtual time. Entries of the same time happen in the order they were made."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Agenda:
    """What is to come. It never looks back."""

    entries: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    made: int = 0

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Put something in."""
        self.made += 1
        heapq.heappush(self.entries, (when, self.made, what))

    def next(self) -> tuple[float, Callable[[], None]]:
        """Take out what comes first."""
        when, _, what = heapq.heappop(self.entries)
        return when, what

    def clear(self) -> None:
        """Forget everything."""
        self.entries.clear()
