"""Containment: what a worker may hold before the kernel ends it, and whether memory was what it died of. Bytes.

Each worker with a plan gets a control group with a limit of that plan and a margin, so one that outgrows it dies
alone. The plan counts the weights in full: pages of the mapped file are charged to the group that reads them first,
and under a tighter limit the kernel would drop and read them again for every token. The other way round, weights that
are in the page cache already are charged to nobody here, and leave a worker that much more room.

Where no groups can be made there is no limit. Resource limits are no substitute: RLIMIT_AS counts mapped files,
RLIMIT_DATA what is reserved (thread stacks, arenas of GPU drivers) and not what is touched, and who meets either dies
in native code of a null pointer rather than of a known cause. `oom_score_adj` still has the kernel take the worker
first when the machine runs out, and its count of such kills still tells what happened.
Used by `residents` and `workers`. Invariant: nothing here raises; the first of a row of failures is logged.
"""

import os
from collections.abc import Callable
from pathlib import Path

from h2qd.core.records import Fault
from h2qd.logs import get_logger
from h2qd.runtime.cgroups import Group, Home, NoGroupsError, open_home
from h2qd.runtime.meter import parse_counts

log = get_logger()

MARGIN_BYTES_MIN = 64 * 2**20
"""What plans leave out shrinks little with the model: prompts in Python, page tables, unused ends of allocations."""

_GIB = 2**30


class Container:
    """The walls around one worker, if there are any: `limit_bytes` None says that there are none."""

    def __init__(
        self, containers: "Containers", planned_bytes: int, limit_bytes: int | None, group: Group | None
    ) -> None:
        self.planned_bytes = planned_bytes
        self.limit_bytes = limit_bytes
        self._containers = containers
        self._group = group
        self._kills_before = containers.machine_oom_kills()

    def attach(self, pid: int) -> None:
        """Put a process in, before it takes memory: what it already has stays outside."""
        if self._group is None:
            return
        try:
            self._group.attach(pid)
        except OSError as error:
            self.close()
            self.limit_bytes = None
            self._containers.complain(f"cannot move process {pid} into its cgroup: {error.strerror}")
        else:
            self._containers.trouble = ""

    def resize(self, planned_bytes: int) -> None:
        """Follow a new plan: only a larger one, since what the process holds now must stay within."""
        self.planned_bytes = planned_bytes
        limit = self._containers.limit_bytes(planned_bytes)
        if self._group is None or self.limit_bytes is None or limit <= self.limit_bytes:
            return
        try:
            self._group.limit(limit)
        except OSError as error:
            self._containers.complain(f"cannot raise the limit of a cgroup to {_gib(limit)}: {error.strerror}")
        else:
            self.limit_bytes = limit

    def oom_kills(self) -> int:
        """How many processes the kernel killed for want of memory: in here, or without walls on the whole machine."""
        if self._group is not None:
            return self._group.oom_kills
        return self._containers.machine_oom_kills() - self._kills_before

    def peak_bytes(self) -> int:
        """The most that was held in here; 0 when nobody knows."""
        return self._group.peak_bytes if self._group is not None else 0

    def fault(self, label: str, process_peak_bytes: int) -> Fault | None:
        """Why a worker that was killed, by nobody here, died of memory; None when it did not.

        `process_peak_bytes` is its largest resident set, for where the group kept no account.
        """
        if self.oom_kills() == 0:
            return None
        peak = f"peak {_gib(self.peak_bytes() or process_peak_bytes)}"
        plan = f"plan {_gib(self.planned_bytes)}"
        if self._group is not None and self.limit_bytes is not None and self._group.overruns:
            what = f"needed more than its limit of {_gib(self.limit_bytes)} ({plan}, {peak})"
        else:
            limit = "no limit" if self.limit_bytes is None else f"limit {_gib(self.limit_bytes)}"
            what = f"was killed because the machine ran out of memory ({plan}, {limit}, {peak})"
        return Fault("worker_oom", f"cannot go on: the process of {label} {what}")

    def close(self) -> None:
        """The process is gone: so is its group."""
        if self._group is not None:
            self._containers.remove(self._group)
            self._group = None


class Containers:
    """What this process can put around its workers.

    `trouble`: why the latest worker has no walls, or none can have; empty when all is well.
    `margin` gives the bytes that a plan of so many bytes may be exceeded by.
    """

    def __init__(self, margin: Callable[[int], int], root: str = "/") -> None:
        self.trouble = "not opened yet"
        self._margin = margin
        self._root = Path(root)
        self._home: Home | None = None

    @property
    def kind(self) -> str:
        """What walls are made of: v2, v1 or none."""
        return self._home.kind if self._home is not None else "none"

    def open(self) -> None:
        """Find out what can be made here, and clear away what a dead daemon left. On v2 this moves the process."""
        self.trouble = ""
        try:
            self._home = open_home(self._root, os.getpid())
        except NoGroupsError as error:
            self.complain(str(error))

    def contain(self, worker: int, planned_bytes: int) -> Container:
        """Walls for worker number `worker`, to be attached before it takes memory."""
        if self._home is None:
            return Container(self, planned_bytes, None, None)
        limit = self.limit_bytes(planned_bytes)
        try:
            group = self._home.make(f"worker-{worker}", limit)
        except OSError as error:
            self.complain(f"cannot make a cgroup of {_gib(limit)}: {error.strerror}")
            return Container(self, planned_bytes, None, None)
        return Container(self, planned_bytes, limit, group)

    def limit_bytes(self, planned_bytes: int) -> int:
        """What a worker of such a plan may hold."""
        return planned_bytes + max(self._margin(planned_bytes), MARGIN_BYTES_MIN)

    def remove(self, group: Group) -> None:
        """A container is done with its group."""
        if self._home is None:
            return
        try:
            self._home.remove(group)
        except OSError as error:  # no descriptor is left to look with: the next removal takes this group along
            log.warning("worker.group_left", error=str(error))

    def complain(self, why: str) -> None:
        """Workers run without walls: said once, until one has them again."""
        if not self.trouble:
            log.warning("worker.not_contained", why=why)
        self.trouble = why

    def machine_oom_kills(self) -> int:
        """Processes that the kernel killed for want of memory since boot, on the whole machine."""
        try:
            text = (self._root / "proc" / "vmstat").read_text("ascii", "replace")
        except OSError:
            return 0
        return parse_counts(text).get("oom_kill", 0)

    def close(self) -> None:
        """Remove what was made, and move back on v2."""
        if self._home is not None:
            self._home.close()
            self._home = None


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.2f} GiB"
