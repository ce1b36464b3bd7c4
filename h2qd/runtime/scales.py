"""The scales: what the zygote and its workers hold, weighed as a whole and shared out among the workers. Bytes.

Weighing walks page tables, milliseconds for gigabytes, so it is done off the loop, one at a time. What a worker holds
is its PSS, less its part of what it shares with the zygote, which the zygote held before: so the workers' parts add
up to what the tree holds more than when it was idle. Called by `residents`. Invariant: nothing raises; a tree that
cannot be weighed in time weighs nothing, and that is logged.
"""

import asyncio
import time
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

from h2qd.logs import get_logger
from h2qd.runtime.meter import parse_sizes, rss_bytes
from h2qd.runtime.zygote import Zygote

log = get_logger()

_WEIGH_S_MAX = 2.0
"""A page table that is locked for this long, by a disk that does not answer, is not waited for."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A process's PSS, and the part of it that the kernel could not take back by dropping pages of files."""

    pss_bytes: int = 0
    anonymous_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Weights:
    """The tree at one moment: each process by its pid, and how long the weighing took."""

    processes: dict[int, Weight] = field(default_factory=dict)
    zygote: int | None = None
    shared_bytes: int = 0
    took_s: float = 0.0

    @property
    def tree_bytes(self) -> int:
        """What all of it holds; 0 when it could not be weighed."""
        return sum(weight.pss_bytes for weight in self.processes.values())

    def held_bytes(self, pid: int | None) -> int:
        """What a worker holds; 0 for one that is gone."""
        return max(0, self._of(pid).pss_bytes - self.shared_bytes) if pid in self.processes else 0

    def kept_bytes(self, pid: int | None) -> int:
        """What a worker holds that the kernel cannot take back."""
        return max(0, self._of(pid).anonymous_bytes - self.shared_bytes) if pid in self.processes else 0

    def freed_bytes(self, pid: int | None, before: "Weights") -> int:
        """What the tree holds less than `before`, but for what other workers took or gave back meanwhile."""
        others = (self.processes.keys() | before.processes.keys()) - {pid, self.zygote, before.zygote}
        theirs = sum(before.held_bytes(other) - self.held_bytes(other) for other in others)
        return max(0, before.tree_bytes - self.tree_bytes - theirs)

    def file_bytes(self, pid: int | None) -> int:
        """What a worker holds of pages of files, which the kernel can take back."""
        weight = self._of(pid)
        return weight.pss_bytes - weight.anonymous_bytes

    def _of(self, pid: int | None) -> Weight:
        return self.processes.get(pid if pid is not None else -1, Weight())


def weight(pid: int, root: str = "/") -> Weight:
    """One process; its RSS counts in full where its pages may not be looked at."""
    try:
        sizes = parse_sizes(Path(root, "proc", str(pid), "smaps_rollup").read_text("ascii", "replace"))
    except OSError:
        sizes = {}
    if "Pss" not in sizes:
        rss = rss_bytes(pid, root)
        return Weight(rss, rss)
    return Weight(sizes["Pss"], sizes.get("Pss_Anon", sizes["Pss"]))


class Scales:
    """Weighs the zygote's tree. `idle_bytes`: what the zygote held when it had no workers."""

    def __init__(self, zygote: Zygote, executor: Executor) -> None:
        self._zygote = zygote
        self._executor = executor
        self.idle_bytes = 0

    async def weigh(self) -> Weights:
        """The tree now."""
        pids = list(self._zygote.pids)
        try:
            async with asyncio.timeout(_WEIGH_S_MAX):
                return await asyncio.get_running_loop().run_in_executor(self._executor, self._weigh, pids)
        except (OSError, RuntimeError) as error:  # TimeoutError is an OSError; RuntimeError: no thread can be started
            log.error("memory.not_measured", error=str(error))  # noqa: TRY400 - its place is known
            return Weights()

    async def learn_idle(self) -> None:
        """Weigh the zygote without workers; one forked meanwhile would share pages, and halve what is read."""
        weights = await self.weigh()
        if weights.tree_bytes and self._zygote.childless:
            self.idle_bytes = weights.tree_bytes

    def _weigh(self, pids: list[int]) -> Weights:
        began = time.monotonic()
        processes = {pid: weight(pid) for pid in pids}
        zygote = self._zygote.pid
        lent = self.idle_bytes - processes[zygote].pss_bytes if zygote in processes else 0
        shared = max(0, lent) // max(1, len(processes) - 1)
        return Weights(processes, zygote, shared, time.monotonic() - began)
