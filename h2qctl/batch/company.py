"""Which lines may run beside others: a line whose model's process died is tried again alone.

One line can bring down the process that answers several, and every one of them then ends alike. Tried again one by
one, the innocent ones are answered, and the one that did it is found, instead of taking others with it each time.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

CRASHES = frozenset({"worker_crashed", "worker_oom", "worker_hung"})

CRASHES_MAX = 3
"""As often as a line may see the process die, the first time perhaps through no fault of its own."""


class Company:
    """Lets lines in: many together, or one that is `alone`. Who wants to be alone is let in first."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._inside = 0
        self._loners = 0

    @asynccontextmanager
    async def entered(self, *, alone: bool) -> AsyncIterator[None]:
        """Be inside, once that is possible."""
        self._loners += alone
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: self._inside == 0 if alone else self._loners == 0)
                self._inside += 1
            try:
                yield
            finally:
                self._inside -= 1
        finally:
            self._loners -= alone
            async with self._changed:
                self._changed.notify_all()
