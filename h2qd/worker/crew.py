"""The threads that compute, before each pass: as many as `neighbour` finds room for, from what `processors` reads.

Called by engines; knows none of them. The kernel is asked a few times a second, not for each pass; where it does not
answer, the number stays what it was at the load. A library divides the attention of a lone token over a long cache
among the threads (ggml's `use_split_kv_path`), so their number changes how its logits are rounded; whoever needs the
same text for the same seed also beside other work sets the number of threads.
"""

import os
import time
from collections.abc import Callable

from h2qd.worker import processors
from h2qd.worker.neighbour import PERIOD_S, Neighbour, Reading


class Crew:
    """`assign` sets the number of threads where there are `limit` so far; it `adapts` or stays as it is."""

    def __init__(
        self,
        limit: int,
        assign: Callable[[int], object],
        *,
        adapts: bool,
        read: Callable[[set[int]], Reading | None] = processors.read,
    ) -> None:
        self._limit = self._assigned = limit
        self._assign = assign
        self._read = read
        self._cpus = os.sched_getaffinity(0)
        self._neighbour = Neighbour(limit, len(self._cpus))
        self._last = read(self._cpus) if adapts and limit > 1 else None

    def muster(self) -> None:
        """Before a pass."""
        last = self._last
        if last is None:
            return
        if time.monotonic() - last.at_s >= PERIOD_S:
            self._last = now = self._read(self._cpus)
            if now is not None:
                self._neighbour.judge(last, now)
        threads = self._limit if self._last is None else self._neighbour.threads
        if threads != self._assigned:
            self._assign(threads)
            self._assigned = threads
