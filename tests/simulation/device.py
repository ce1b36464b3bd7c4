"""A device's memory as its kernel keeps it: what workers hold at each moment, and a process that is not ours.

A worker that loads takes its memory bit by bit, one that goes gives it back when it is gone. The other process takes
and gives as its temper says. When nothing is left, the kernel kills the worker that holds most. Used by `simulator`;
it knows workers and bytes, nothing of the core. Invariant: used bytes are never more than there are.
"""

import random
from dataclasses import dataclass, field

GIB = 2**30
TOTAL_BYTES = 16 * GIB
DAEMON_BYTES = GIB // 2
"""What runs beside the models: the daemon, the kernel, the system's services."""

STALL_SHARE = 0.03
"""With less than this free, tasks wait for memory."""


@dataclass
class Holding:
    """What a worker holds: it goes from `was_bytes` to `goal_bytes` within `takes_s` from `began` on."""

    began: float
    takes_s: float
    was_bytes: int
    goal_bytes: int

    def at(self, now: float) -> int:
        """The bytes held now."""
        share = 1.0 if self.takes_s <= 0 else min(1.0, max(0.0, (now - self.began) / self.takes_s))
        return int(self.was_bytes + (self.goal_bytes - self.was_bytes) * share)


@dataclass(frozen=True)
class Temper:
    """How the other process behaves: it wanders between `least_bytes` and `most_bytes`.

    It takes at most `rate_bytes_per_s`, or all at once with a chance of `jump` a second.
    """

    least_bytes: int
    most_bytes: int
    rate_bytes_per_s: int
    jump: float = 0.0


@dataclass
class Device:
    """The memory. `oom_kills` counts what the kernel had to do."""

    chance: random.Random
    temper: Temper
    holdings: dict[int, Holding] = field(default_factory=dict)
    foreign_bytes: int = 0
    goal_bytes: int = 0
    oom_kills: int = 0

    def __post_init__(self) -> None:
        self.foreign_bytes = self.goal_bytes = self.temper.least_bytes

    def available(self, now: float) -> int:
        """What can be had now; negative when more is wanted than there is."""
        held = sum(holding.at(now) for holding in self.holdings.values())
        return TOTAL_BYTES - DAEMON_BYTES - self.foreign_bytes - held

    def used_share(self, now: float) -> float:
        """The share in use, 0..1."""
        return min(1.0, 1.0 - max(0, self.available(now)) / TOTAL_BYTES)

    def stalls(self, now: float) -> bool:
        """Whether tasks wait for memory."""
        return self.available(now) < STALL_SHARE * TOTAL_BYTES

    def live(self, passed_s: float) -> None:
        """Let the other process go on for a while."""
        temper, chance = self.temper, self.chance
        if abs(self.foreign_bytes - self.goal_bytes) < 2**20 and chance.random() < 0.05 * passed_s:
            high = chance.random() < 0.5
            middle = (temper.least_bytes + temper.most_bytes) // 2
            bounds = (middle, temper.most_bytes) if high else (temper.least_bytes, middle)
            self.goal_bytes = chance.randint(*bounds)
        step = int(temper.rate_bytes_per_s * passed_s)
        if temper.jump and chance.random() < temper.jump * passed_s:
            step = TOTAL_BYTES
        self.foreign_bytes += max(-step, min(step, self.goal_bytes - self.foreign_bytes))

    def largest(self, now: float) -> int | None:
        """The worker that the kernel kills first."""
        return max(self.holdings, key=lambda worker: (self.holdings[worker].at(now), worker), default=None)
