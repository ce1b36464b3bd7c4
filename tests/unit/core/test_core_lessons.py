"""What measured loads teach: plans are corrected, within bounds, and only news is kept."""

from h2qd.core.lessons import LESSONS_MAX, Lesson, correction_bytes, is_news, learn
from tests.playbook import (
    CTX,
    GIB,
    MIB,
    Playbook,
    gone,
    learns,
    load,
    measured,
    plan_bytes,
    ready,
    registered,
    remember,
    resident,
    start,
    stop,
)


def lesson(ctx: int, measured_bytes: int, *, planned_bytes: int = 1000, slots: int = 1, kv: str = "f16") -> Lesson:
    return Lesson(ctx, slots, kv, planned_bytes, measured_bytes)


def correction(*lessons: Lesson, ctx: int = 1, slots: int = 1, kv: str = "f16", planned_bytes: int = 1000) -> int:
    return correction_bytes(lessons, ctx, slots, kv, planned_bytes)


def test_who_knows_nothing_corrects_nothing() -> None:
    assert correction() == 0


def test_the_same_setting_takes_what_it_took() -> None:
    assert correction(lesson(1, 1100)) == 100
    assert correction(lesson(1, 1100, planned_bytes=900)) == 100, "also when plans are made otherwise by now"


def test_another_setting_is_off_by_what_the_nearest_was_off() -> None:
    far, near = lesson(9, 5100, planned_bytes=5000), lesson(2, 1230, planned_bytes=1200)
    assert correction(far, near) == 30
    assert correction(far, near, planned_bytes=4800) == 100
    other_kv = lesson(1, 1007, kv="q8_0")
    assert correction(other_kv, far) == 100, "a KV cache of the same kind is nearer than a plan of the same size"


def test_corrections_are_bounded() -> None:
    assert correction(lesson(1, 1_000_000)) == 500
    assert correction(lesson(1, 1)) == -150


def test_a_lesson_replaces_that_of_its_setting_and_the_oldest_goes() -> None:
    lessons: tuple[Lesson, ...] = ()
    for ctx in range(LESSONS_MAX):
        lessons = learn(lessons, lesson(ctx, 1))
    lessons = learn(lessons, lesson(0, 2))
    assert (len(lessons), lessons[-1].measured_bytes) == (LESSONS_MAX, 2)
    lessons = learn(lessons, lesson(99, 1))
    assert len(lessons) == LESSONS_MAX
    assert [one.ctx for one in lessons] == [*range(2, LESSONS_MAX), 0, 99]


def test_noise_is_no_news() -> None:
    assert not is_news((), lesson(1, 1010))
    assert is_news((), lesson(1, 1011))
    assert not is_news((lesson(1, 1100),), lesson(1, 1105))
    assert is_news((lesson(1, 1100),), lesson(1, 1000))


# --- and how the core comes by them -------------------------------------------------------------------


def test_a_load_that_took_more_than_planned_teaches_at_once() -> None:
    took = plan_bytes() + 100 * MIB
    play = (
        Playbook("a")
        .when(load(1, "a"))
        .then(start("a"))
        .when(ready("a", held=took))
        .then(remember("a"), resident(1, "a"))
        .memory(learns("a"))
    )
    assert play.state.models["a"].lessons == (Lesson(CTX, 1, "f16", plan_bytes(), took),)


def test_less_than_planned_teaches_once_a_whole_batch_was_computed() -> None:
    play = Playbook("a").given_ready("a").memory()
    took = plan_bytes() - 60 * MIB
    play.when(measured("a", took)).then().memory()
    play.when(measured("a", took, exercised=True)).then().memory(learns("a"))
    play.when(measured("a", took + MIB, exercised=True)).then().memory()


def test_the_next_load_is_planned_with_what_was_learned() -> None:
    play = Playbook("a").given_ready("a").when(measured("a", plan_bytes() - 60 * MIB, exercised=True)).then()
    play.when(load(1, "a", ctx=8192)).then(stop("a")).when(gone("a")).then(start("a", ctx=8192))
    assert play.state.models["a"].planned_bytes == plan_bytes(8192) - 60 * MIB


def test_a_worker_on_its_way_out_teaches_nothing() -> None:
    play = Playbook("a").given_ready("a").when(load(1, "a", ctx=8192)).then(stop("a"))
    play.when(measured("a", 2 * GIB, exercised=True)).then().memory()
    assert play.state.models["a"].held_bytes == 2 * GIB


def test_a_model_is_registered_with_what_was_learned_before() -> None:
    known = (Lesson(CTX, 1, "f16", plan_bytes(), plan_bytes() - 60 * MIB),)
    play = Playbook().when(registered("a", lessons=known)).then().when(load(1, "a")).then(start("a"))
    assert play.state.models["a"].planned_bytes == plan_bytes() - 60 * MIB
