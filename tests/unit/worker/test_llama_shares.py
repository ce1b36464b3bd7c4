"""How prompts share a pass: evenly, in turns, within the budget."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from h2qd.worker.llama.shares import Waiting, shares

GRID = 64
waiting = st.lists(st.builds(Waiting, st.integers(1, 3000), st.booleans()), min_size=1, max_size=16)


@given(waiting, st.integers(4, 512))
def test_the_first_gets_something_and_the_sum_is_within_the_budget(asked: list[Waiting], budget: int) -> None:
    taken = shares(asked, budget, GRID)
    assert taken[0] > 0
    assert sum(taken) <= budget
    assert all(0 <= count <= one.rest for one, count in zip(asked, taken, strict=True))


@given(waiting, st.integers(4, 512))
def test_a_pass_is_of_equal_pieces_or_of_ends(asked: list[Waiting], budget: int) -> None:
    parts = [(one, count) for one, count in zip(asked, shares(asked, budget, GRID), strict=True) if count]
    assert len({count for _, count in parts}) == 1 or all(one.rest == count for one, count in parts)


@given(st.lists(st.integers(1, 600), min_size=1, max_size=8), st.integers(4, 512))
def test_served_longest_ago_first_everybody_ends(rests: list[int], budget: int) -> None:
    left = dict(enumerate(rests))
    whole = dict.fromkeys(left, True)
    served: Counter[int] = Counter()
    passes = 0
    while left:
        passes += 1
        order = sorted(left, key=lambda one: served[one])
        taken = shares([Waiting(left[one], whole[one]) for one in order], budget, GRID)
        for one, count in zip(order, taken, strict=True):
            left[one] -= count
            whole[one] = whole[one] and count % GRID == 0
            served[one] = passes if count else served[one]
        left = {one: rest for one, rest in left.items() if rest}
        assert passes <= len(rests) * sum(rests)


def test_alone_a_prompt_goes_by_the_grid_and_ends_with_the_rest() -> None:
    assert shares([Waiting(300, True)], 128, GRID) == [128]
    assert shares([Waiting(100, True)], 128, GRID) == [64]
    assert shares([Waiting(36, True)], 128, GRID) == [36]
    assert shares([Waiting(100, False)], 128, GRID) == [100]


def test_ends_go_together_and_pieces_go_together() -> None:
    assert shares([Waiting(26, True), Waiting(2000, True), Waiting(30, False)], 384, GRID) == [26, 0, 30]
    assert shares([Waiting(2000, True), Waiting(26, True), Waiting(1000, True)], 384, GRID) == [128, 0, 128]


def test_a_small_budget_is_for_few() -> None:
    assert shares([Waiting(2000, True)] * 4, 8, GRID) == [4, 4, 0, 0]
    assert shares([Waiting(2, True)] * 4, 3, GRID) == [2, 0, 0, 0]
