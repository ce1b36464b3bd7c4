"""How many threads may compute beside whatever else the device does: as many as find a free CPU.

Pure. ggml's threads meet at hundreds of barriers in a pass, so one that must wait for a CPU holds up all others,
which spin meanwhile: beside one busy process per core, one thread is two to four times as fast as one for each core
(measured on two). Called by `crew`, which says what the kernel counted. Fewer at once, more only after a while.
Invariant: at least one, and never more than the limit.
"""

from typing import NamedTuple

PERIOD_S = 0.25
"""What is judged at a time: many of the scheduler's slices, few of a reader's glances."""

ROOM_MIN = 0.7
"""So much of a CPU must be missing or free before the number changes: a moment's work of others is no neighbour."""

ROOMY_PERIODS = 4
"""There must be room for so long before there are more threads: one too many costs more than one too few."""

_DEMAND_MIN = 0.8
"""Threads at work on average; in a period with less, this process mostly rested, and waits of others tell nothing."""


class Reading(NamedTuple):
    """What was counted until `at_s`: all threads of this process ran and waited to run; its CPUs were idle."""

    at_s: float
    ran_s: float
    waited_s: float
    idle_s: float


class Neighbour:
    """Says the number of `threads`; starts at the limit."""

    def __init__(self, limit: int, cpus: int) -> None:
        self.threads = limit
        self._limit = limit
        self._cpus = cpus
        self._roomy = 0  # periods in a row

    def judge(self, before: Reading, after: Reading) -> int:
        """How many threads from now on, by what happened between two readings.

        Where runnable threads share the CPUs evenly, each runs CPUs / runnable of its time. So the time that ours ran
        and waited tells how many there are; those that are not ours are the others'.
        """
        at_s, ran_s, waited_s, idle_s = (now - then for now, then in zip(after, before, strict=True))
        if at_s <= 0 or ran_s <= 0 or waited_s < 0:  # a thread's counts go with it
            return self.threads
        demand = (ran_s + waited_s) / at_s
        if demand < _DEMAND_MIN:
            return self.threads
        runnable = self._cpus * (ran_s + waited_s) / ran_s
        others = max(0.0, runnable - demand - max(0.0, idle_s) / at_s)
        room = self._cpus - others
        spare = room - self.threads
        self._roomy = self._roomy + 1 if spare > ROOM_MIN else 0
        if spare < -ROOM_MIN:
            self.threads = max(1, min(self.threads, round(room)))
        elif self._roomy == ROOMY_PERIODS:
            self._roomy = 0
            self.threads = min(self._limit, self.threads + round(spare))
        return self.threads
