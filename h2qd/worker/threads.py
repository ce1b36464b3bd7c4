"""How many threads compute: one for each physical core that this process may run on.

A second thread on the same core adds nothing to matrix products that wait for memory, and ggml's threads spin
at barriers, so too many cost more than too few. Called by engines at a load; knows none of them.
"""

import os
from pathlib import Path

THREADS_MAX = 512
"""ggml's own bound (GGML_MAX_N_THREADS)."""

_SYSFS = Path("/sys/devices/system/cpu")


def thread_count(asked: int) -> int:
    """`asked` within bounds; when it is 0, the physical cores of this process's CPU set."""
    count = asked if asked > 0 else physical_cores(os.sched_getaffinity(0))
    return max(1, min(count, THREADS_MAX))


def physical_cores(cpus: set[int], sysfs: Path = _SYSFS) -> int:
    """How many cores `cpus` are; a CPU whose siblings the kernel does not tell counts as a core of its own."""
    return len({_siblings(cpu, sysfs) for cpu in cpus})


def _siblings(cpu: int, sysfs: Path) -> str:
    try:
        return (sysfs / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text(encoding="ascii").strip()
    except OSError:
        return str(cpu)
