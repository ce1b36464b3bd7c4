"""Which tokens stay when a text outgrows the context."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from h2qd.wire.messages import Overflow
from h2qd.worker.llama.overflow import fit, gap

PROMPT = list(range(1000))


@pytest.mark.parametrize("overflow", ["refuse", "truncate", "shift"])
def test_what_fits_is_left_alone(overflow: Overflow) -> None:
    found = fit(PROMPT, 1200, 100, overflow)
    assert found is not None
    assert (found.tokens, found.truncated) == (PROMPT, 0)


def test_what_does_not_fit_is_refused() -> None:
    assert fit(PROMPT, 1001, 100, "refuse") is not None
    assert fit(PROMPT, 1000, 0, "refuse") is None


def test_the_middle_goes() -> None:
    found = fit(PROMPT, 500, 100, "truncate")
    assert found is not None
    assert list(found.tokens) == [*range(100), *range(700, 1000)]
    assert found.truncated == 600


def test_room_for_the_answer_is_what_it_may_take_or_a_quarter() -> None:
    for tokens_max, room in ((0, 1), (1, 1), (50, 50), (125, 125), (1000, 125)):
        found = fit(PROMPT, 500, tokens_max, "truncate")
        assert found is not None
        assert 500 - len(found.tokens) == room
    almost = fit(PROMPT, 1010, 100, "truncate")
    assert almost is not None
    assert almost.truncated == 90, "it would fit, but would leave the answer too little"


def test_a_prompt_that_may_be_shifted_is_cut_only_if_it_must_be() -> None:
    whole, cut = fit(PROMPT, 1001, 5000, "shift"), fit(PROMPT, 1000, 5000, "shift")
    assert whole is not None
    assert cut is not None
    assert (whole.truncated, whole.beginning) == (0, 250)
    assert (len(cut.tokens), cut.beginning) == (750, 250)
    assert list(cut.tokens) == [*range(187), *range(437, 1000)]


@given(st.integers(1, 300), st.integers(4, 300), st.integers(0, 400), st.sampled_from(["truncate", "shift"]))
def test_what_stays_fits_and_has_both_ends(length: int, size: int, tokens_max: int, overflow: Overflow) -> None:
    prompt = list(range(length))
    found = fit(prompt, size, tokens_max, overflow)
    assert found is not None
    assert 0 < len(found.tokens) < size
    assert found.tokens[0] == 0
    assert found.tokens[-1] == length - 1 or len(found.tokens) == 1
    assert len(found.tokens) + found.truncated == length
    assert list(found.tokens) == sorted(set(found.tokens))
    assert 1 <= found.beginning <= len(found.tokens)


@given(st.integers(2, 1000), st.integers(1, 250))
def test_a_full_context_loses_the_older_half_after_its_beginning(size: int, beginning: int) -> None:
    beginning = min(beginning, size - 1)
    start, count = gap(size, beginning)
    assert start == beginning
    assert 1 <= count <= size - beginning
    assert count in {1, (size - beginning) // 2}
