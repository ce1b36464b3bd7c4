"""Corrections beyond single cases (`test_core_lessons`): which lesson is nearest, and what holds in any case."""

from hypothesis import given
from hypothesis import strategies as st

from h2qd.core.lessons import Lesson, correction_bytes


def lesson(ctx: int, *, slots: int = 1, kv_type: str = "f16", planned: int = 1000, measured: int = 1000) -> Lesson:
    return Lesson(ctx, slots, kv_type, planned, measured)


def test_the_nearest_shares_slots_and_kv_type_before_size() -> None:
    taught = (
        lesson(512, planned=1000, measured=1010),
        lesson(4096, planned=2000, measured=2020),
        lesson(8192, slots=4, planned=2400, measured=2430),
        lesson(8192, kv_type="q8_0", planned=1600, measured=1640),
    )
    assert correction_bytes(taught, 1024, 1, "f16", 1100) == 10
    assert correction_bytes(taught, 8192, 1, "f16", 2400) == 20
    assert correction_bytes(taught, 512, 4, "f16", 1000) == 30
    assert correction_bytes(taught, 512, 1, "q8_0", 1000) == 40
    assert correction_bytes(taught, 512, 2, "q8_0", 1000) == 40, "one of the two is better than none"


def test_of_equally_near_lessons_the_newest_counts() -> None:
    taught = (lesson(512, planned=900, measured=910), lesson(2048, planned=1100, measured=1150))
    assert correction_bytes(taught, 1024, 1, "f16", 1000) == 50
    assert correction_bytes(taught[::-1], 1024, 1, "f16", 1000) == 10


numbers = st.integers(0, 2**50)
lessons = st.builds(Lesson, st.integers(0, 3), st.integers(0, 2), st.sampled_from(["f16", "q8_0"]), numbers, numbers)


@given(st.lists(lessons, max_size=20).map(tuple), lessons)
def test_a_corrected_plan_stays_near_the_plan(taught: tuple[Lesson, ...], now: Lesson) -> None:
    planned = now.planned_bytes
    corrected = planned + correction_bytes(taught, now.ctx, now.slots, now.kv_type, planned)
    assert planned * 85 <= corrected * 100 <= planned * 150
