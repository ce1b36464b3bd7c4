"""What a draft model's guesses are staked on: costs that were measured, and how many came true."""

import random

import pytest

from h2qd.worker.llama.wager import PLAIN_EVERY, QUIET_PASSES, QUIET_PASSES_MAX, Wager

ROOM = 7
PLAIN_S = 0.01
FLAT = dict.fromkeys(range(1, ROOM + 2), 1.0)
"""A pass takes as long whatever it holds: a large model, whose weights are all there is to wait for."""

STEEP = {tokens: 1 + 0.5 * (tokens - 1) for tokens in FLAT}
"""Each token adds half a pass: a small model on a CPU."""


class Device:
    """A model and its draft, whose guesses come true with `chance`: what an answer takes, in plain passes."""

    def __init__(self, draft: float, passes: dict[int, float], chance: float) -> None:
        self.wager = Wager(ROOM)
        self.draft, self.passes, self.chance = draft, passes, chance
        self.numbers = random.Random(5)
        self.asked = 0

    def answer(self, tokens: int) -> float:
        cost, said = 0.0, 0
        while said < tokens:
            count = 0
            if not self.wager.silent():
                if self.wager.measured:
                    count = self.wager.count(ROOM)
                else:
                    self.wager.drafted(1, self.draft * PLAIN_S)
                    cost += 3 * self.draft
            accepted = 0
            while accepted < count and self.numbers.random() < self.chance:
                accepted += 1
            if count:
                self.asked += 1
                self.wager.drafted(count, count * self.draft * PLAIN_S)
                self.wager.checked(count, accepted)
            self.wager.passed(count + 1, self.passes[count + 1] * PLAIN_S)
            cost += count * self.draft + self.passes[count + 1]
            said += accepted + 1
        return cost


@pytest.mark.parametrize("chance", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize(
    ("draft", "passes"),
    [(1.0, FLAT), (1.0, STEEP), (0.5, STEEP), (0.2, STEEP), (0.2, FLAT), (0.05, FLAT), (3.0, FLAT)],
)
def test_it_never_costs_much(draft: float, passes: dict[int, float], chance: float) -> None:
    """Whatever the draft is worth, an answer takes 5 % more at most, but for the first tries."""
    assert Device(draft, passes, chance).answer(2000) <= 2000 * 1.05


@pytest.mark.parametrize(("draft", "chance", "gain"), [(0.05, 0.9, 3.0), (0.1, 0.8, 2.0), (0.2, 0.7, 1.3)])
def test_a_draft_that_is_often_right_and_cheap_wins(draft: float, chance: float, gain: float) -> None:
    assert Device(draft, FLAT, chance).answer(2000) < 2000 / gain


@pytest.mark.parametrize("passes", [FLAT, STEEP])
def test_a_draft_as_dear_as_its_model_is_never_asked(passes: dict[int, float]) -> None:
    device = Device(1.0, passes, 1.0)
    device.answer(3 * QUIET_PASSES_MAX)
    assert device.asked == 0


def test_a_draft_that_is_never_right_is_asked_ever_less() -> None:
    device = Device(0.2, FLAT, 0.0)
    asked = []
    for _ in range(3):
        before = device.asked
        device.answer(QUIET_PASSES_MAX)
        asked.append(device.asked - before)
    assert 0 < asked[1] <= asked[0] < QUIET_PASSES_MAX / 50
    assert asked[2] > 0, "a text may begin that it is good at"


def test_it_goes_on_where_a_text_begins_that_it_is_good_at() -> None:
    device = Device(0.1, FLAT, 0.0)
    device.answer(2 * QUIET_PASSES)
    device.chance = 0.95
    device.answer(8 * QUIET_PASSES)
    assert device.answer(1000) < 500


def test_the_more_come_true_the_more_it_guesses() -> None:
    counts = []
    for chance in (0.3, 0.6, 0.95):
        device = Device(0.1, FLAT, chance)
        device.answer(200)
        counts.append(device.wager.count(ROOM) or device.wager.count(ROOM))
    assert counts == sorted(set(counts))
    assert counts[-1] == ROOM


def test_a_plain_pass_comes_now_and_then() -> None:
    device = Device(0.05, FLAT, 1.0)
    device.answer(100 * ROOM)
    counts = []
    for _ in range(2 * PLAIN_EVERY):
        counts.append(device.wager.count(ROOM))
        if counts[-1]:
            device.wager.checked(counts[-1], counts[-1])
    assert counts.count(0) == 2


def test_the_end_of_an_answer_tells_nothing() -> None:
    device = Device(0.3, FLAT, 0.9)
    device.answer(100)
    assert device.wager.count(0) == 0
    assert not device.wager.silent()


def test_nothing_is_guessed_before_a_plain_pass_was_measured() -> None:
    wager = Wager(ROOM)
    wager.passed(4, 1.0)
    assert wager.silent()
    wager.passed(1, PLAIN_S)
    assert not wager.silent()
    assert not wager.measured
