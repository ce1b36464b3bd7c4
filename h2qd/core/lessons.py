"""What loads taught about a model's memory: plans corrected by what was measured. Pure; called by admission.

A load with the very settings of a lesson is expected to take what that lesson measured. For other settings, what the
nearest lesson was off by is added: plans err in what they cannot see (a tokenizer's texts, a library's tables), and
that hardly depends on the context. Invariants: at most `LESSONS_MAX` lessons, one for each setting, newest last; a
correction stays within the bounds below, whatever was measured.
"""

from dataclasses import dataclass

LESSONS_MAX = 16

_LESS_PERCENT_MAX = 15
"""A context that was never filled looks cheap; the plan knows better, so a lesson may take off this much at most."""

_MORE_PERCENT_MAX = 50
"""More than this is no error of the plan but a fault, which the worker's limit is there for."""

_NOISE_PERCENT = 1
"""Loads of the same settings are measured this much apart."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a load with these settings was planned with and measured at, in bytes; `ctx` in tokens.

    `draft` names the draft model that was loaded with it, if any.
    """

    ctx: int
    slots: int
    kv_type: str
    planned_bytes: int
    measured_bytes: int
    draft: str = ""

    def is_of(self, ctx: int, slots: int, kv_type: str, draft: str) -> bool:
        """Whether it was learned with these settings."""
        return (self.ctx, self.slots, self.kv_type, self.draft) == (ctx, slots, kv_type, draft)


def correction_bytes(
    lessons: tuple[Lesson, ...], ctx: int, slots: int, kv_type: str, planned_bytes: int, draft: str = ""
) -> int:
    """What to add to a plan of `planned_bytes` for these settings, after `lessons` of this model; may be negative."""
    if not lessons:
        return 0
    same = next((lesson for lesson in lessons if lesson.is_of(ctx, slots, kv_type, draft)), None)
    if same is not None:
        correction = same.measured_bytes - planned_bytes
    else:
        # The nearest shares slots, KV type and draft if any does, then is nearest in size; of equals, the newest.
        nearest = min(
            reversed(lessons),
            key=lambda lesson: (
                (lesson.slots != slots) + (lesson.kv_type != kv_type) + (lesson.draft != draft),
                abs(lesson.planned_bytes - planned_bytes),
            ),
        )
        correction = nearest.measured_bytes - nearest.planned_bytes
    least = -(planned_bytes * _LESS_PERCENT_MAX // 100)
    most = planned_bytes * _MORE_PERCENT_MAX // 100
    return max(least, min(correction, most))


def learn(lessons: tuple[Lesson, ...], lesson: Lesson) -> tuple[Lesson, ...]:
    """`lessons` and `lesson`, which replaces the one of the same settings; the oldest make room."""
    others = [old for old in lessons if not old.is_of(lesson.ctx, lesson.slots, lesson.kv_type, lesson.draft)]
    return (*others, lesson)[-LESSONS_MAX:]


def is_news(lessons: tuple[Lesson, ...], lesson: Lesson) -> bool:
    """Whether a measurement differs by more than noise from what is known of its settings, by lesson or by plan."""
    setting = lesson.ctx, lesson.slots, lesson.kv_type, lesson.draft
    same = (old.measured_bytes for old in lessons if old.is_of(*setting))
    known = next(same, lesson.planned_bytes)
    return abs(lesson.measured_bytes - known) * 100 > known * _NOISE_PERCENT
