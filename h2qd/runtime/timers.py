"""The core's timers on the loop's clock: `SetTimer` and `ClearTimer` in, `TimerFired` out."""

import asyncio
from collections.abc import Callable

from h2qd.core.effects import Timer


class Timers:
    """At most one pending call per timer; setting it anew moves it."""

    def __init__(self, fired: Callable[[Timer], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._fired = fired
        self._pending: dict[Timer, asyncio.TimerHandle] = {}

    def set(self, timer: Timer, at: float) -> None:
        """Fire at `at` on the loop's clock."""
        self.clear(timer)
        self._pending[timer] = self._loop.call_at(at, self._fire, timer)

    def clear(self, timer: Timer) -> None:
        """Do not fire."""
        handle = self._pending.pop(timer, None)
        if handle is not None:
            handle.cancel()

    def _fire(self, timer: Timer) -> None:
        del self._pending[timer]
        self._fired(timer)

    def close(self) -> None:
        """Fire nothing more."""
        for handle in self._pending.values():
            handle.cancel()
        self._pending.clear()
