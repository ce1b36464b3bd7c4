"""How large a pass of prompts may be beside streams: by what passes were measured to take."""

import pytest

from h2qd.worker.pace import DELAY_RATIO, DELAY_S_MAX, DELAY_S_MIN, TOKENS_STEP, Pace


def settled(decode_s: float, fixed_s: float, token_s: float, crowding: float = 0) -> tuple[Pace, int]:
    """A pace after many passes on a device where they take so long; and what it then gives."""
    pace = Pace(512)
    for _ in range(200):
        pace.decoded(decode_s)
        tokens = pace.between_tokens(crowding)
        pace.prefilled(tokens, fixed_s + tokens * token_s)
    return pace, pace.between_tokens(crowding)


@pytest.mark.parametrize(
    ("decode_s", "fixed_s", "token_s"),
    [(0.012, 0.004, 0.0019), (0.05, 0.004, 0.0015), (0.2, 0.15, 0.04), (1.0, 0.2, 0.05), (0.1, 0.03, 0.0001)],
)
def test_a_pass_takes_what_it_may_and_not_much_less(decode_s: float, fixed_s: float, token_s: float) -> None:
    _, tokens = settled(decode_s, fixed_s, token_s)
    took_s = fixed_s + tokens * token_s
    assert took_s <= DELAY_RATIO * decode_s * 1.05 or tokens == TOKENS_STEP
    assert took_s + 2 * TOKENS_STEP * token_s >= DELAY_RATIO * decode_s or tokens == 512


def test_prompts_always_get_something() -> None:
    assert settled(0.01, 1.0, 1.0)[1] == TOKENS_STEP


def test_a_fast_device_does_not_waste_passes() -> None:
    _, tokens = settled(0.001, 0.0005, 0.0001)
    assert 0.0005 + tokens * 0.0001 >= DELAY_S_MIN * 0.8


@pytest.mark.parametrize(("crowding", "delay_s"), [(0.5, 0.014), (1, 0.014), (4, 0.04), (7, 0.07), (60, DELAY_S_MAX)])
def test_each_who_waits_counts_like_one_who_decodes(crowding: float, delay_s: float) -> None:
    _, tokens = settled(0.010, 0.003, 0.0004, crowding)
    assert delay_s * 0.85 <= 0.003 + tokens * 0.0004 <= delay_s * 1.05


def test_a_large_company_does_not_shrink_a_slow_pass() -> None:
    assert settled(1.0, 0.2, 0.05, 60)[1] == settled(1.0, 0.2, 0.05)[1]


def test_a_busy_moment_changes_little() -> None:
    pace, before = settled(0.05, 0.004, 0.0015)
    pace.prefilled(before, 10.0)
    assert pace.between_tokens() >= before * 0.7
    pace, before = settled(0.05, 0.004, 0.0015)
    pace.decoded(10.0)
    assert pace.between_tokens() <= before * 1.4


def test_it_grows_step_by_step() -> None:
    pace = Pace(512)
    first = pace.between_tokens()
    pace.decoded(10.0)
    pace.prefilled(first, 0.001)
    assert pace.between_tokens() == 2 * first
