"""Who gives way to whom: requests that wait for a place, begun or not, and the one that pauses for a newcomer.

Pure. Called by the engines' batches; knows none of them. Invariant: whoever is in line has a priority no higher than
any that runs, so a place that gets free goes to the head of the line, and nobody pauses for an equal.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar


class Request(Protocol):
    """What the order goes by: `priority`, the higher the sooner, then `arrived`, the smaller the sooner."""

    @property
    def priority(self) -> int:
        """See `messages.Priority`."""
        ...

    @property
    def arrived(self) -> int:
        """Grows with each newcomer."""
        ...


_R = TypeVar("_R", bound=Request)


def head(waiting: Iterable[_R]) -> _R | None:
    """Who goes on next: of the highest priority the oldest."""
    return min(waiting, key=lambda request: (-request.priority, request.arrived), default=None)


def gives_way(running: Iterable[_R], newcomer: Request) -> _R | None:
    """Who pauses for `newcomer`: of the lowest priority below its own the youngest; None: it waits."""
    lower = (request for request in running if request.priority < newcomer.priority)
    return min(lower, key=lambda request: (request.priority, -request.arrived), default=None)


def crowding(waiting: Iterable[Request], beside: Sequence[Request]) -> float:
    """How many wait for each of those who are served `beside` them, at least one; who is of less priority waits."""
    highest = max(request.priority for request in beside)
    return sum(request.priority >= highest for request in waiting) / len(beside)
