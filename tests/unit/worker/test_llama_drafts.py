"""What is guessed from a text's past: only what came before, and seldom in vain."""

import random

from hypothesis import given
from hypothesis import strategies as st

from h2qd.worker.llama import drafts
from h2qd.worker.llama.drafts import DRAFT_TOKENS, MATCH_TOKENS, QUIET_TOKENS, Drafts

tokens = st.lists(st.integers(0, 5), max_size=200)


def scanned(text: list[int], count: int) -> list[int]:
    """The oracle: what followed the latest earlier place at which the last tokens occur."""
    end = text[-MATCH_TOKENS:]
    for start in range(len(text) - 1, MATCH_TOKENS - 1, -1):
        if text[start - MATCH_TOKENS : start] == end:
            longer = text[start:]
            while len(longer) < count:
                longer.append(longer[-(len(text) - start)])
            return longer[:count]
    return []


def overwritten(text: list[int]) -> bool:
    """Whether others share the place in the table of what the text ends with."""
    ends = [tuple(text[end - MATCH_TOKENS : end]) for end in range(MATCH_TOKENS, len(text) + 1)]
    return any(hash(one) % drafts._ENTRIES == hash(ends[-1]) % drafts._ENTRIES for one in {*ends} - {ends[-1]})


@given(tokens, st.integers(drafts.ACCEPTED_MIN, 20))
def test_a_guess_is_what_followed_before(text: list[int], count: int) -> None:
    drafted = Drafts(text).draft(count)
    assert drafted in ([], scanned(text, min(count, DRAFT_TOKENS)))  # the table may have lost a place, none is wrong


@given(st.lists(st.integers(0, 300_000), min_size=MATCH_TOKENS, max_size=60), st.integers(1, 60))
def test_what_is_said_again_is_guessed(text: list[int], said: int) -> None:
    again = text + text[:said]
    drafted = Drafts(again).draft(DRAFT_TOKENS)
    if said < MATCH_TOKENS or overwritten(again):
        assert drafted == [] or drafted == scanned(again, DRAFT_TOKENS)
    else:
        assert drafted == scanned(again, DRAFT_TOKENS) != []


@given(tokens, tokens)
def test_tokens_added_one_by_one_are_as_those_known_at_once(first: list[int], second: list[int]) -> None:
    grown = Drafts(first)
    for token in second:
        grown.add(token)
    assert grown.draft(DRAFT_TOKENS) == Drafts(first + second).draft(DRAFT_TOKENS)


def test_a_short_draft_does_not_pay() -> None:
    circle = Drafts([1, 2, 3] * 10)
    assert circle.draft(DRAFT_TOKENS) == [1, 2, 3, 1, 2, 3, 1]
    assert len(circle.draft(drafts.ACCEPTED_MIN)) == drafts.ACCEPTED_MIN
    assert circle.draft(drafts.ACCEPTED_MIN - 1) == []


def test_wrong_guesses_make_it_silent_for_twice_as_long_and_a_right_one_ends_that() -> None:
    circle = Drafts([1, 2, 3] * 10)

    def silence() -> int:
        for count in range(10 * QUIET_TOKENS):
            if circle.draft(DRAFT_TOKENS):
                return count
            circle.add(1 + count % 3)
        raise AssertionError

    for _ in range(20):  # it has gained so much that it can afford to lose
        circle.checked(DRAFT_TOKENS, DRAFT_TOKENS)
    for quiet in (QUIET_TOKENS, 2 * QUIET_TOKENS, 4 * QUIET_TOKENS):
        assert circle.draft(DRAFT_TOKENS)
        circle.checked(DRAFT_TOKENS, 0)
        assert quiet <= silence() <= quiet + MATCH_TOKENS + 3
    circle.checked(DRAFT_TOKENS, DRAFT_TOKENS)
    circle.checked(DRAFT_TOKENS, 0)
    assert QUIET_TOKENS <= silence() <= QUIET_TOKENS + MATCH_TOKENS + 3


def test_a_text_without_repetition_costs_nothing() -> None:
    chance = random.Random(3)
    text = Drafts([])
    for _ in range(5000):
        text.add(chance.randrange(1000))
        assert text.draft(DRAFT_TOKENS) == []


@given(st.data(), st.integers(0, 2**32))
def test_whatever_is_said_little_is_lost(data: st.DataObject, seed: int) -> None:
    """Texts that repeat themselves in part, the worst of them too: in passes, as the module counts them."""
    chance = random.Random(seed)
    phrases = [[chance.randrange(1000) for _ in range(chance.randint(12, 40))] for _ in range(4)]
    said = [
        token
        for _ in range(30)
        for token in [
            *phrases[data.draw(st.integers(0, 3))],
            *([chance.randrange(1000)] if data.draw(st.booleans()) else []),
        ]
    ]
    text, at, passes = Drafts(phrases[0]), 0, 0.0
    while at < len(said):
        drafted = text.draft(DRAFT_TOKENS)
        accepted = 0
        while accepted < min(len(drafted), len(said) - at) and drafted[accepted] == said[at + accepted]:
            accepted += 1
        for token in said[at : at + accepted + 1]:
            text.add(token)
        at += accepted + 1
        passes += drafts.PASS_COST if drafted else 1
        if drafted:
            text.checked(len(drafted), accepted)
    assert passes <= len(said) * (1 + drafts.LOST_SHARE_MAX) + drafts.PASS_COST
