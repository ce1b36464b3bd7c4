"""What the kernel counts about this process and the CPUs that it may use, as `neighbour` wants it.

Reads, decides nothing; takes about 50 microseconds with two threads. Called by `crew`. Invariant: where the kernel
does not count, or not as expected, the answer is None.
"""

import contextlib
import os
import time
from pathlib import Path

from h2qd.worker.neighbour import Reading

_PROC = Path("/proc")
_FILE_BYTES_MAX = 1 << 16
_THREADS_MAX = 2048


def read(cpus: set[int], proc: Path = _PROC) -> Reading | None:
    """The counts until now."""
    try:
        idle_s = _idle_s(cpus, proc)
        ran_s, waited_s = _own_s(proc)
    except (OSError, ValueError):
        return None
    return Reading(time.monotonic(), ran_s, waited_s, idle_s)


def _own_s(proc: Path) -> tuple[float, float]:
    """How long all threads ran, and waited to run: schedstat, in ns (sched-stats of the kernel's documentation)."""
    tasks = proc / "self" / "task"
    ran = waited = 0
    for task in os.listdir(tasks)[:_THREADS_MAX]:  # noqa: PTH208 - names suffice
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            here_ran, here_waited, *_ = _text(tasks / task / "schedstat").split()
            ran += int(here_ran)
            waited += int(here_waited)
    if not ran:
        raise ValueError("the kernel does not count")
    return ran / 1e9, waited / 1e9


def _idle_s(cpus: set[int], proc: Path) -> float:
    """Time that `cpus` had nothing to run, in proc_stat(5): the fields idle and iowait, in ticks."""
    wanted = {f"cpu{cpu}" for cpu in cpus}
    fields = [line.split() for line in _text(proc / "stat").splitlines() if line.startswith("cpu")]
    ticks = [int(line[4]) + int(line[5]) for line in fields if line[0] in wanted and len(line) > 5]
    if len(ticks) != len(wanted):
        raise ValueError("a CPU is missing")
    return sum(ticks) / os.sysconf("SC_CLK_TCK")


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_FILE_BYTES_MAX).decode("ascii")
