"""The guard's judgement: how far the device is on its way out of memory, told from readings, with hysteresis.

A level is entered at once and left only when readings have stayed below its leave threshold for a dwell, so that a
device at the edge does not flap. What is done at each level is `relief`'s business. Called by `machine` for each
reading; pure.
"""

from dataclasses import dataclass, replace
from enum import IntEnum


class Level(IntEnum):
    """How bad it is; larger is worse."""

    NORMAL = 0
    WARN = 1
    CRITICAL = 2
    EMERGENCY = 3


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When levels change, as shares of the device's memory in use (0..1), and how long things take, in seconds.

    A level is left at its threshold less `leave_gap`, after `dwell_s`. After an eviction the guard waits `calm_s`
    before the next one, unless the pressure never ended or has come back for `dwell_s`.
    """

    warn: float = 0.80
    critical: float = 0.90
    emergency: float = 0.96
    leave_gap: float = 0.05
    dwell_s: float = 5.0
    calm_s: float = 60.0

    def level(self, used_share: float, lowered_by: float = 0.0) -> Level:
        """The level that a share in use stands for, all thresholds being lower by so much."""
        bounds = (
            (self.emergency, Level.EMERGENCY),
            (self.critical, Level.CRITICAL),
            (self.warn, Level.WARN),
        )
        return next((level for bound, level in bounds if used_share >= bound - lowered_by), Level.NORMAL)


@dataclass(frozen=True, slots=True)
class Guard:
    """Where the device is. `since`: when the level was entered, `pressed_since`: since when it is CRITICAL or worse.

    `easing_since`: since when readings say that the level may be left. `evicted_at`: when it last had to evict.
    `pressing`: the level that the last reading alone speaks for; below `level` while that eases.
    """

    level: Level = Level.NORMAL
    since: float = 0.0
    pressed_since: float | None = None
    easing_since: float | None = None
    evicted_at: float | None = None
    used_share: float = 0.0
    pressing: Level = Level.NORMAL

    @property
    def admits_loads(self) -> bool:
        """Whether new loads may begin."""
        return self.level < Level.CRITICAL

    @property
    def admits_work(self) -> bool:
        """Whether new work may begin; it would only take the place of what is cut off."""
        return self.level < Level.EMERGENCY

    def may_evict(self, thresholds: Thresholds, now: float) -> bool:
        """Whether it is time for an eviction: the last one is long ago, or did not help, or does no longer."""
        if self.pressed_since is None:
            return False
        if self.evicted_at is None or self.pressed_since <= self.evicted_at:
            return True
        return now - self.evicted_at >= thresholds.calm_s or now - self.pressed_since >= thresholds.dwell_s


def judge(guard: Guard, thresholds: Thresholds, now: float, used_share: float, *, stalled: bool) -> Guard:
    """The guard after a reading: `used_share` of the memory in use, and whether tasks stalled for want of it.

    A stall says that the reading is too kind: from WARN on it counts as one level more.
    """
    told = thresholds.level(used_share)
    if stalled and Level.WARN <= told < Level.EMERGENCY:
        told = Level(told + 1)
    if told > guard.level:
        return _entered(guard, told, now, used_share)
    held = max(told, min(guard.level, thresholds.level(used_share, thresholds.leave_gap)))
    if held == guard.level:
        return _with(guard, used_share, held, easing_since=None)
    easing_since = now if guard.easing_since is None else guard.easing_since
    if now - easing_since < thresholds.dwell_s:
        return _with(guard, used_share, held, easing_since=easing_since)
    return _entered(guard, held, now, used_share)


def _entered(guard: Guard, level: Level, now: float, used_share: float) -> Guard:
    pressed = None if level < Level.CRITICAL else now if guard.pressed_since is None else guard.pressed_since
    return Guard(level, now, pressed, None, guard.evicted_at, used_share, level)


def _with(guard: Guard, used_share: float, pressing: Level, easing_since: float | None) -> Guard:
    return replace(guard, easing_since=easing_since, used_share=used_share, pressing=pressing)
