"""One answer out of several: which are the same, which wins, and what a judge or vectors make of them."""

import math

import pytest

from h2qd.runtime.consensus import (
    Verdict,
    chosen,
    distinct,
    judge_grammar,
    judge_prompt,
    judged,
    majority,
    medoid,
    normalised,
)
from h2qd.worker.gbnf import read


def keys(*texts: str) -> list[str]:
    return [normalised(text) for text in texts]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Paris.", " paris\n"), ("**Paris**", "Paris"), ("«Paris»!", "“paris”"), ("the  big\tone", "The big one."),
        ("STRASSE", "straße"), ("42.", "42"), ("4\uff12", "42"), ("don't", "Don't"), ("(3.5)", "3.5"), ("...", "..."),
    ],
)  # fmt: skip
def test_the_same_but_for_case_blanks_and_punctuation_around_words(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("5", "-5"), ("3.5", "35"), ("C", "C++"), ("C#", "C++"), ("50", "50%"), ("$5", "5"), ("+", "-"),
        ("ab", "a b"), ("yes", "yes no"), ("", "..."), ("!", "?"),
    ],
)  # fmt: skip
def test_what_differs_in_more_than_that_is_another_answer(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


def test_most_votes_win() -> None:
    assert majority(keys("Rome", "Paris", "Berlin", "paris.")) == Verdict(1, (1, 3), 0.5)
    assert majority(keys("a")) == Verdict(0, (0,), 1.0)


def test_of_as_many_votes_the_earlier_answer_wins() -> None:
    assert majority(keys("Rome", "Paris")).chosen == 0
    assert majority(keys("x", "Rome", "Paris", "paris", "rome")) == Verdict(1, (1, 4), 0.4)


def test_saying_nothing_is_an_answer_only_where_all_do() -> None:
    assert majority(keys("", " \n", "Paris")) == Verdict(2, (2,), 1 / 3)
    assert majority(keys("", " ")) == Verdict(0, (0, 1), 1.0)
    assert distinct(keys("", "b", "a", "B.")) == [1, 2]


def test_the_medoid_is_nearest_to_all_others() -> None:
    vectors = [[1.0, 0.0], [0.6, 0.8], [0.0, 2.0]]
    verdict = medoid(["east", "between", "north"], vectors)
    assert (verdict.chosen, verdict.voters) == (1, (1,))
    assert math.isclose(verdict.agreement, (0.6 + 0.8) / 2)


def test_vectors_of_any_length_count_by_their_direction() -> None:
    far = medoid(keys("a", "b", "A"), [[3.0, 4.0], [4.0, -3.0], [600.0, 800.0]])
    assert far.chosen == 0
    assert far.voters == (0, 2)
    assert math.isclose(far.agreement, 0.5)


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf, 1e200])
def test_a_vector_without_direction_is_near_to_nothing(bad: float) -> None:
    verdict = medoid(["a", "b", "c"], [[bad, bad], [1.0, 0.0], [1.0, 0.0]])
    assert verdict.chosen == 1
    assert math.isclose(verdict.agreement, 0.5)


def test_opposite_answers_do_not_agree_at_all() -> None:
    assert medoid(["a", "b"], [[1.0], [-1.0]]).agreement == 0.0
    assert medoid(["a"], [[1.0, 2.0]]).agreement == 0.0, "nobody else to be near to"


def test_a_judge_reads_the_question_and_each_answer_under_its_number() -> None:
    prompt = judge_prompt("Capital of France?\n", ["Paris", "Rome\n"])
    at = [prompt.index(part) for part in ("Capital of France?", "Answer 1:\nParis", "Answer 2:\nRome", "1 to 2")]
    assert at == sorted(at)
    assert prompt.endswith("The number of the best answer:")


def test_long_questions_and_answers_are_cut_so_that_a_judge_can_read_them() -> None:
    answers = ["b" * 10**6] * 16
    prompt = judge_prompt("a" * 10**6 + " what?", answers)
    assert len(prompt) < 20_000
    assert "what?" in prompt
    assert "Answer 16:\nbbb" in prompt


@pytest.mark.parametrize(("said", "place"), [("2", 1), (" 1", 0), ("Answer 3.", 2), ("0", None), ("4", None)])
def test_a_judge_names_an_answer_that_exists(said: str, place: int | None) -> None:
    assert judged(said, 3) == place


def test_a_judge_that_says_no_number_has_not_chosen() -> None:
    assert judged("the first", 3) is None
    assert judged("", 3) is None


def test_the_judges_grammar_holds_each_number_once() -> None:
    assert read(judge_grammar(12))
    assert judge_grammar(2) == 'root ::= " "? ("1" | "2")'


def test_whoever_is_chosen_has_the_votes_of_those_who_say_the_same() -> None:
    assert chosen(keys("Rome", "Paris", "ROME!"), 2) == Verdict(2, (0, 2), 2 / 3)
