"""Logarithms of probabilities: those of a softmax, finite whatever the logits are."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

llama_logprobs = pytest.importorskip("h2qd.worker.llama.logprobs")
Likelihoods, LOGPROB_MIN = llama_logprobs.Likelihoods, llama_logprobs.LOGPROB_MIN

logits = st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=300)


class Words:
    """A vocabulary of numbers."""

    @staticmethod
    def shown(token: int) -> str:
        return f"<{token}>"


@given(logits, st.integers(0, 20))
def test_it_is_a_softmax(numbers: list[float], top: int) -> None:
    likelihoods = Likelihoods(np.array(numbers, np.float32), top)
    whole = math.fsum(math.exp(number - max(numbers)) for number in numbers)
    for token, number in enumerate(numbers):
        expected = number - max(numbers) - math.log(whole)
        assert likelihoods.of(token) == pytest.approx(expected, abs=1e-4)
        assert likelihoods.of(token) <= 0


@given(logits, st.integers(0, 20))
def test_the_likeliest_come_first_and_equals_by_number(numbers: list[float], top: int) -> None:
    told = Likelihoods(np.array(numbers, np.float32), top).told(0, Words())
    assert (told.token, told.text) == (0, "<0>")
    assert len(told.top) == min(top, len(numbers))
    given_ = [numbers[one.token] for one in told.top]
    assert given_ == sorted(numbers, reverse=True)[: len(given_)]
    assert all(one.text == f"<{one.token}>" for one in told.top)
    order = [(-numbers[one.token], one.token) for one in told.top]
    assert order == sorted(order)


def test_what_is_changed_afterwards_does_not_count() -> None:
    numbers = np.array([1.0, 2.0, 3.0], np.float32)
    likelihoods = Likelihoods(numbers, 1)
    before = likelihoods.of(0)
    numbers[:] = -np.inf
    assert likelihoods.of(0) == before
    assert likelihoods.told(0, Words()).top[0].token == 2


def test_what_is_ruled_out_has_a_finite_figure() -> None:
    likelihoods = Likelihoods(np.array([0.0, -np.inf], np.float32), 2)
    assert likelihoods.finite
    assert likelihoods.of(1) == LOGPROB_MIN
    assert [one.logprob for one in likelihoods.told(1, Words()).top] == [0.0, LOGPROB_MIN]


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_broken_numbers_are_told(broken: float) -> None:
    assert not Likelihoods(np.array([0.0, broken], np.float32), 1).finite or broken == -np.inf
    assert not Likelihoods(np.full(3, broken, np.float32), 1).finite
