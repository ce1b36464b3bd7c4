"""The guard's judgement: levels are entered at once, left after a dwell, and evictions keep their distance."""

from collections.abc import Iterable
from itertools import pairwise

from h2qd.core.guard import Guard, Level, Thresholds, judge

THRESHOLDS = Thresholds(warn=0.80, critical=0.90, emergency=0.96, leave_gap=0.05, dwell_s=5.0, calm_s=60.0)


def after(readings: Iterable[tuple[float, float]], guard: Guard | None = None, *, stalled: bool = False) -> Guard:
    """The guard after readings of (time, share in use)."""
    guard = guard or Guard()
    for now, used_share in readings:
        guard = judge(guard, THRESHOLDS, now, used_share, stalled=stalled)
    return guard


def levels(readings: Iterable[tuple[float, float]]) -> list[Level]:
    guard, seen = Guard(), []
    for now, used_share in readings:
        guard = judge(guard, THRESHOLDS, now, used_share, stalled=False)
        seen.append(guard.level)
    return seen


def test_a_level_is_entered_at_once_from_its_threshold_on() -> None:
    for share, level in [
        (0.0, Level.NORMAL),
        (0.7999, Level.NORMAL),
        (0.80, Level.WARN),
        (0.90, Level.CRITICAL),
        (0.96, Level.EMERGENCY),
        (1.0, Level.EMERGENCY),
    ]:
        guard = after([(7.0, share)])
        assert (guard.level, guard.used_share) == (level, share)
        assert guard.since == (0.0 if level is Level.NORMAL else 7.0)


def test_a_level_is_left_after_the_dwell_below_its_leave_threshold() -> None:
    fall = [(float(second), 0.80) for second in range(1, 8)]
    assert levels([(0.0, 0.92), *fall]) == [Level.CRITICAL] * 6 + [Level.WARN] * 2


def test_a_level_is_kept_between_its_leave_threshold_and_its_own() -> None:
    guard = after([(0.0, 0.90), *((float(second), 0.86) for second in range(1, 100))])
    assert (guard.level, guard.since, guard.easing_since) == (Level.CRITICAL, 0.0, None)


def test_one_reading_above_begins_the_dwell_anew() -> None:
    guard = after([(0.0, 0.90), (1.0, 0.80), (4.0, 0.80), (5.0, 0.88), (6.0, 0.80), (10.0, 0.80)])
    assert (guard.level, guard.easing_since) == (Level.CRITICAL, 6.0)
    assert after([(11.0, 0.80)], guard).level is Level.WARN


def test_relief_may_take_several_levels_at_once() -> None:
    guard = after([(0.0, 0.97), (1.0, 0.5), (6.0, 0.5)])
    assert (guard.level, guard.since, guard.easing_since) == (Level.NORMAL, 6.0, None)


def test_where_readings_end_counts_when_the_dwell_is_over() -> None:
    """It eased to NORMAL first and is at WARN by the end: WARN it is."""
    assert after([(0.0, 0.97), (1.0, 0.5), (6.0, 0.82)]).level is Level.WARN


def test_a_device_at_the_edge_does_not_flap() -> None:
    readings = [(float(second), 0.905 if second % 2 else 0.845) for second in range(120)]
    seen = levels(readings)
    changes = sum(before is not now for before, now in pairwise(seen))
    assert changes == 1, "once up, never down: it was never below the leave threshold for the dwell"


def test_a_stall_lifts_the_level_by_one_from_warn_on() -> None:
    for share, level in [
        (0.5, Level.NORMAL),
        (0.82, Level.CRITICAL),
        (0.92, Level.EMERGENCY),
        (0.97, Level.EMERGENCY),
    ]:
        assert after([(0.0, share)], stalled=True).level is level


def test_a_level_that_a_stall_brought_is_left_like_any_other() -> None:
    guard = after([(0.0, 0.82)], stalled=True)
    assert after([(1.0, 0.82), (5.9, 0.82)], guard).level is Level.CRITICAL
    assert after([(1.0, 0.82), (6.0, 0.82)], guard).level is Level.WARN


def test_loads_are_admitted_below_critical() -> None:
    assert [Guard(level).admits_loads for level in Level] == [True, True, False, False]


def test_pressure_is_dated_from_critical_through_emergency_and_back() -> None:
    guard = after([(1.0, 0.82), (2.0, 0.91)])
    assert guard.pressed_since == 2.0
    guard = after([(3.0, 0.97)], guard)
    assert (guard.level, guard.pressed_since) == (Level.EMERGENCY, 2.0)
    guard = after([(4.0, 0.90), (9.0, 0.90)], guard)
    assert (guard.level, guard.pressed_since) == (Level.CRITICAL, 2.0)
    guard = after([(10.0, 0.5), (15.0, 0.5)], guard)
    assert (guard.level, guard.pressed_since) == (Level.NORMAL, None)


def test_evictions_keep_their_distance_unless_pressure_lasts() -> None:
    def may(now: float, **fields: float | None) -> bool:
        return Guard(Level.CRITICAL, **fields).may_evict(THRESHOLDS, now)  # type: ignore[arg-type]

    assert not may(10.0), "there is no pressure"
    assert may(10.0, pressed_since=10.0), "it is the first eviction"
    assert may(11.0, pressed_since=10.0, evicted_at=10.0), "the last one did not help"
    assert not may(21.0, pressed_since=20.0, evicted_at=10.0), "pressure is back just now"
    assert may(25.0, pressed_since=20.0, evicted_at=10.0), "it is back to stay"
    assert may(70.0, pressed_since=69.0, evicted_at=10.0), "the last one is long ago"
