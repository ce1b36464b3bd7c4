"""One reading of the device's memory, as it binds this process: how full, how much waiting for it, how hot.

It judges nothing: what a reading means is decided by the core. `meter` has the parsers, and the functions for single
figures; a `Gauge` is for whoever looks again and again, and runs on the event loop each second, so it keeps its files
open. Only what takes the kernel little is read here; processes (`meter.pss_bytes`) are not, and GPUs are asked by
`accelerators` in a thread of its own. Invariant: `read` raises nothing. A figure that cannot be read keeps its last
value, or is None where it never had one.
"""

import os
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from h2qd.runtime.accelerators import Accelerators, DeviceMemory
from h2qd.runtime.kernel_file import KernelFile
from h2qd.runtime.meter import group_folders, held_bytes, parse_counts, parse_limit, parse_sizes, parse_stalls
from h2qd.runtime.thermometer import Thermometer

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_GROUPS_MAX = 32
_V2 = ""


@dataclass(frozen=True, slots=True)
class GroupEvents:
    """How often a group ran into its limits since it was made; None where its kernel does not tell.

    `oom`: its processes could not be given memory. `oom_kill`: one of them was killed for it. `high`: they were
    slowed down. `max`: the limit was in the way, though giving up page cache may have been enough. v2 counts the
    groups below with it, v1 does not.
    """

    oom: int | None = None
    oom_kill: int | None = None
    high: int | None = None
    max: int | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """The device's memory at one time.

    `total_bytes` and `available_bytes` are of the machine, or less by the cgroups around this process. `group_`: the
    innermost of these that has a limit below the machine's memory; it has used what it would not give up at once.
    Swap is the machine's. Stall shares are percent of the last 10 s in which some or all tasks waited for memory, in
    that group (cgroup v2) or on the machine.
    """

    total_bytes: int = 0
    available_bytes: int = 0
    group_used_bytes: int | None = None
    group_high_bytes: int | None = None
    group_max_bytes: int | None = None
    group_events: GroupEvents = GroupEvents()
    swap_total_bytes: int = 0
    swap_used_bytes: int = 0
    swap_in_bytes_per_s: float = 0.0
    some_stall_share: float | None = None
    full_stall_share: float | None = None
    temperature_c: float | None = None
    devices: tuple[DeviceMemory, ...] = ()

    @property
    def used_share(self) -> float:
        """How much of the memory is not available, 0 to 1; 0 when nothing could be read yet."""
        if self.total_bytes <= 0:
            return 0.0
        return min(1.0, max(0.0, 1 - self.available_bytes / self.total_bytes))


class Gauge:
    """Takes readings. `root` is put before /proc and /sys."""

    def __init__(self, root: str = "/", accelerators: Accelerators | None = None) -> None:
        self._root = Path(root)
        self._accelerators = accelerators
        self._meminfo = KernelFile(self._root / "proc/meminfo")
        self._vmstat = KernelFile(self._root / "proc/vmstat")
        self._pressure = KernelFile(self._root / "proc/pressure/memory")
        self._membership = KernelFile(self._root / "proc/self/cgroup")
        self._mounts = KernelFile(self._root / "proc/self/mountinfo")
        self._thermometer = Thermometer(self._root)
        self._groups: list[_Group] = []
        self._groups_of = ""
        self._binding: _Group | None = None
        self._swapped_in: tuple[float, int] | None = None
        self._machine = Reading()
        """The machine's own figures, as they were last."""

    @property
    def pressure_files(self) -> tuple[Path, ...]:
        """Where the kernel tells stalls of this memory, the best first; for a trigger. As of the last reading."""
        inner = (self._binding.pressure.path,) if self._binding is not None and self._binding.is_v2 else ()
        return (*inner, self._pressure.path)

    def read(self, now_s: float) -> Reading:
        """The memory now, `now_s` on a clock that never goes back. Takes well under a millisecond."""
        self._find_groups()
        self._look_at_machine(now_s)
        reading = self._stalls(self._grouped(self._machine))
        devices = self._accelerators.read(now_s) if self._accelerators is not None else ()
        return replace(reading, temperature_c=self._thermometer.read(now_s), devices=devices)

    def _look_at_machine(self, now_s: float) -> None:
        sizes = parse_sizes(self._meminfo.text() or "")
        if "MemTotal" not in sizes or "MemAvailable" not in sizes:
            return
        swap_total = sizes.get("SwapTotal", 0)
        self._machine = Reading(
            total_bytes=sizes["MemTotal"],
            available_bytes=sizes["MemAvailable"],
            swap_total_bytes=swap_total,
            swap_used_bytes=max(0, swap_total - sizes.get("SwapFree", 0)),
            swap_in_bytes_per_s=self._swap_in(now_s),
        )

    def _swap_in(self, now_s: float) -> float:
        """Bytes a second read back from swap since the last reading. Memory that comes back was needed."""
        pages = parse_counts(self._vmstat.text() or "").get("pswpin")
        before, rate = self._swapped_in, self._machine.swap_in_bytes_per_s
        if pages is None:
            return rate
        if before is not None and now_s <= before[0]:
            return rate
        self._swapped_in = (now_s, pages)
        return max(0, pages - before[1]) * _PAGE_BYTES / (now_s - before[0]) if before is not None else 0.0

    def _find_groups(self) -> None:
        """Which groups are around this process; the daemon moves into one of its own after it has started."""
        membership = self._membership.text()
        if not membership or membership == self._groups_of:
            return
        mounts = self._mounts.text()
        if not mounts:
            return
        self._close_groups()
        folders = islice(group_folders(self._root, membership, mounts), _GROUPS_MAX)
        self._groups = [_Group(folder, is_v2=hierarchy == _V2) for hierarchy, folder in folders]
        self._groups_of = membership

    def _grouped(self, reading: Reading) -> Reading:
        """The reading, less by what the groups leave of it."""
        machine_bytes = reading.total_bytes
        self._binding = None
        for group in self._groups:
            limit = group.read(machine_bytes)
            if limit is None:
                continue
            reading = replace(
                reading,
                total_bytes=min(reading.total_bytes, limit),
                available_bytes=max(0, min(reading.available_bytes, limit - group.used_bytes)),
            )
            if self._binding is None:
                self._binding = group
                reading = replace(
                    reading,
                    group_used_bytes=group.used_bytes,
                    group_high_bytes=group.high_bytes,
                    group_max_bytes=group.max_bytes,
                    group_events=group.events(),
                )
        return reading

    def _stalls(self, reading: Reading) -> Reading:
        inner = self._binding.pressure.text() if self._binding is not None and self._binding.is_v2 else None
        stalls = parse_stalls(inner or "") or parse_stalls(self._pressure.text() or "")
        return replace(reading, some_stall_share=stalls.get("some"), full_stall_share=stalls.get("full"))

    def close(self) -> None:
        """Let go of all files."""
        for file in (self._meminfo, self._vmstat, self._pressure, self._membership, self._mounts):
            file.close()
        self._close_groups()
        self._thermometer.close()

    def _close_groups(self) -> None:
        for group in self._groups:
            group.close()
        self._groups, self._groups_of, self._binding = [], "", None


class _Group:
    """The files of one cgroup, and what they said last. Bytes."""

    def __init__(self, folder: Path, *, is_v2: bool) -> None:
        self.is_v2 = is_v2
        self.used_bytes = 0
        self.high_bytes: int | None = None
        self.max_bytes: int | None = None
        self._max = KernelFile(folder / ("memory.max" if is_v2 else "memory.limit_in_bytes"))
        self._high = KernelFile(folder / "memory.high")  # v2 alone has it; v1's soft limit slows nobody down
        self._used = KernelFile(folder / ("memory.current" if is_v2 else "memory.usage_in_bytes"))
        self._stat = KernelFile(folder / "memory.stat")
        self._events = KernelFile(folder / ("memory.events" if is_v2 else "memory.oom_control"))
        self._failures = KernelFile(folder / "memory.failcnt")
        self.pressure = KernelFile(folder / "memory.pressure")

    def read(self, machine_bytes: int) -> int | None:
        """Take a reading; the limit, where there is one below the machine's memory."""
        self.max_bytes = self._limit(self._max, self.max_bytes, machine_bytes)
        self.high_bytes = self._limit(self._high, self.high_bytes, machine_bytes) if self.is_v2 else None
        limits = [limit for limit in (self.max_bytes, self.high_bytes) if limit is not None]
        if not limits:
            return None
        used, stat = parse_limit(self._used.text() or ""), self._stat.text()
        if used is not None and stat is not None:
            self.used_bytes = max(0, held_bytes(used, stat))
        return min(limits)

    @staticmethod
    def _limit(file: KernelFile, last: int | None, machine_bytes: int) -> int | None:
        text = file.text()
        if text is None:
            return last
        limit = parse_limit(text)
        return limit if limit is not None and limit < machine_bytes else None  # "no limit" is 2**63 on v1

    def events(self) -> GroupEvents:
        counts = parse_counts(self._events.text() or "")
        if self.is_v2:
            return GroupEvents(counts.get("oom"), counts.get("oom_kill"), counts.get("high"), counts.get("max"))
        return GroupEvents(oom_kill=counts.get("oom_kill"), max=parse_limit(self._failures.text() or ""))

    def close(self) -> None:
        files = (self._max, self._high, self._used, self._stat, self._events, self._failures, self.pressure)
        for file in files:
            file.close()
