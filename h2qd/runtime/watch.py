"""The watch over the device's memory: a reading each second, and at once when the kernel says that tasks stall.

Turns readings into the core's events (`MemoryRead`, `LimitRead`) and the configuration's shares into bytes; what a
reading leads to is decided by the core. Called by the daemon, and by whoever has just changed what memory holds.
Invariant: a reading that fails changes nothing.
"""

from collections.abc import Callable, Iterator

from h2qd.config.schema import Memory
from h2qd.core.budget import Limits
from h2qd.core.events import Event, LimitRead, MemoryRead
from h2qd.runtime.readings import Gauge, Reading

_STALL_SHARE = 10.0
"""Percent of the last 10 s in which some tasks waited for memory: from here on that counts as stalled."""

_SWAP_IN_BYTES_PER_S = 16 * 2**20
"""Memory that is read back from swap this fast is missed by somebody: that counts as stalled too."""

_SHORT_SHARE = 0.05
"""The device has this much of the models' budget too little, before that is worth a complaint."""

_GIB = 2**30


class Watch:
    """The latest reading, and the limits that follow from it. `post` takes events, `now` is the core's clock.

    `foreign_bytes`: what servers on this device hold of it for models that are not ours.
    """

    def __init__(
        self,
        gauge: Gauge,
        memory: Memory,
        post: Callable[[Event], None],
        now: Callable[[], float],
        foreign_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        self._gauge = gauge
        self._foreign_bytes = foreign_bytes
        self._memory = memory
        self._post = post
        self._now = now
        self.reading = Reading()
        self.limits = Limits(0, 0, 0, 0)
        self._told_bytes: int | None = None

    def look(self, *, stalled: bool = False) -> None:
        """Take a reading, and tell the core of it."""
        now = self._now()
        self.reading = reading = self._gauge.read(now)
        if reading.total_bytes == 0:
            return
        self.limits = limits = _limits(self._memory, reading.total_bytes)
        if limits.models_bytes != self._told_bytes:
            self._told_bytes = limits.models_bytes
            self._post(LimitRead(now, limits.models_bytes))
        stalled = stalled or (reading.some_stall_share or 0.0) >= _STALL_SHARE
        stalled = stalled or reading.swap_in_bytes_per_s >= _SWAP_IN_BYTES_PER_S
        accelerator = max((device.total_bytes - device.used_bytes for device in reading.devices), default=0)
        foreign = self._foreign_bytes()
        self._post(MemoryRead(now, reading.used_share, reading.available_bytes, stalled, accelerator, foreign))

    def complaints(self, held_bytes: int) -> Iterator[str]:
        """What keeps the budget from being what it promises; `held_bytes` of it are with models already."""
        limits = self.limits
        if limits.fault:
            yield limits.fault
        wanted = self._memory.model_limit.size_bytes or 0
        if wanted > limits.models_bytes:
            yield (
                f"models get {limits.models_bytes / _GIB:.2f} GiB of the {wanted / _GIB:.2f} GiB of "
                f"memory.model_limit: {limits.max_bytes / _GIB:.2f} GiB are there for everything"
            )
        promised = limits.models_bytes - held_bytes
        there = self.reading.available_bytes - limits.buffer_bytes
        if promised - there > limits.models_bytes * _SHORT_SHARE:
            yield (
                f"the device has {max(0, there) / _GIB:.2f} GiB for further models, of the "
                f"{promised / _GIB:.2f} GiB that the budget promises"
            )


def _limits(memory: Memory, total_bytes: int) -> Limits:
    max_bytes = memory.max.of(total_bytes)
    rest = max(0, max_bytes - memory.working_bytes - memory.safety_buffer_bytes)
    models = min(memory.model_limit.of(max_bytes), rest)
    return Limits(max_bytes, models, memory.working_bytes, memory.safety_buffer_bytes)
