"""Loads and unloads, again and again: what a daemon holds after thousands of them, beside what it held before.

The resident size of a process is never quite still, so growth is judged by its trend: the median of the last quarter
of the run's looks less that of the second quarter, for the first quarter fills caches. All else is counted and must
be the same in the end. Called by the short test beside this module and by `python -m tests.soak`.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from h2qctl import Client
from tests.harness import DaemonProcess, await_true

LOOKS = 20
GROWTH_BYTES_MAX = 2**20
"""Between the quarters; the daemon trims its heap only from so much on."""

UNEVEN_BYTES = 8 * 2**20
"""What an unload may seem to give back less than was held: libraries are shared with whoever comes and goes here."""


@dataclass(frozen=True)
class Report:
    """What a run found. Bytes; `counts` before and after."""

    cycles: int
    took_s: float
    sizes: tuple[int, ...]
    before: dict[str, int]
    after: dict[str, int]

    @property
    def growth_bytes(self) -> int:
        """The trend of the resident size."""
        quarter = len(self.sizes) // 4
        second, last = self.sizes[quarter : 2 * quarter], self.sizes[-quarter:]
        return round(statistics.median(last) - statistics.median(second))

    def fault(self) -> str:
        """What is wrong, in words; empty when nothing is."""
        if self.before != self.after:
            return f"{self.before} became {self.after}"
        if self.growth_bytes > GROWTH_BYTES_MAX:
            return f"the daemon grew by {self.growth_bytes} bytes: {self.sizes}"
        return ""

    def __str__(self) -> str:
        mib = [round(size / 2**20, 2) for size in self.sizes]
        return (
            f"{self.cycles} cycles in {self.took_s:.1f} s ({self.took_s / self.cycles * 1000:.0f} ms each); "
            f"RSS {mib[0]} to {mib[-1]} MiB (least {min(mib)}, most {max(mib)}), trend {self.growth_bytes:+} bytes; "
            f"{self.after}"
        )


def held(daemon: DaemonProcess) -> dict[str, int]:
    """What the daemon and its zygote hold."""
    main, zygote = psutil.Process(daemon.process.pid), psutil.Process(daemon.zygote_pid())
    return {
        "descriptors": main.num_fds(),
        "zygote's descriptors": zygote.num_fds(),
        "threads": main.num_threads(),
        "zygote's threads": zygote.num_threads(),
        "processes": len(daemon.tree()),
        "files": len(list((daemon.folder / "state").rglob("*"))),
    }


def run(daemon: DaemonProcess, model: str, cycles: int, told: Callable[[str], None]) -> Report:
    """Load, answer and unload a model so many times, after some that do not count."""
    client = daemon.client()
    for _ in range(max(2, cycles // 50)):
        cycle(client, model)
    rest(client)
    before, began = held(daemon), time.monotonic()
    sizes = []
    for look in range(LOOKS):
        for _ in range(cycles * look // LOOKS, cycles * (look + 1) // LOOKS):
            cycle(client, model)
        sizes.append(daemon.rss_bytes())
        told(f"{cycles * (look + 1) // LOOKS} cycles: {sizes[-1] / 2**20:.2f} MiB")
    took_s = time.monotonic() - began
    rest(client)
    return Report(cycles, took_s, tuple(sizes), before, held(daemon))


def cycle(client: Client, model: str) -> None:
    """One load, one answer, one unload, whose memory comes back."""
    assert client.load(model).changed
    assert client.infer("hello", model, max_tokens=2, ignore_eos=True).usage.completion_tokens == 2
    gone = client.unload(model).released
    assert gone is not None
    assert gone.freed_bytes > max(0, gone.held_bytes - UNEVEN_BYTES), gone


def rest(client: Client) -> None:
    """Wait until a tick of the daemon's own went by: it trims and sweeps then."""
    began_ms = client.status().uptime_ms
    await_true(lambda: client.status().uptime_ms > began_ms + 1100, "a tick went by")
