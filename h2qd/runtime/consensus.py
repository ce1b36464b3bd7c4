"""One answer out of several: what most say, what a judge chose, what lies nearest to all others.

Pure: answers, vectors and a judge's words in, a verdict out. An answer is meant by its place in the list, and
compared by its key (`normalised`): the words of its text but for case, blanks and punctuation around them. `Paris.`
is `paris`, `-5` is not `5`. The key is of the whole text, not of its end or its numbers: a short answer is for the
prompt, `stop` or a grammar to bring about. Called by `swarm`. Invariant: of any answers that exist, one is chosen.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from operator import mul

_AROUND = ".,;:!?…\"'`()[]{}<>*_~\u2018\u2019\u201c\u201d\u201e«»¿¡。、"
"""What may stand around a word without being part of it: quotes, brackets, ends of sentences, marks of emphasis."""

_COMPARED_CHARS_MAX = 8000
"""How much of an answer its key is made of."""

_QUESTION_CHARS_MAX = 6000
_ANSWERS_CHARS_MAX = 12_000
"""What a judge gets to read: the end of the question, and the beginnings of all answers together."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The chosen answer, who gave the same (it is among them), and the share of agreement, 0..1."""

    chosen: int
    voters: tuple[int, ...]
    agreement: float


def normalised(text: str) -> str:
    """What an answer is compared by; without words in it, the text itself but for case and blanks."""
    folded = unicodedata.normalize("NFKC", text[:_COMPARED_CHARS_MAX]).casefold()
    words = [bare for word in folded.split() if (bare := word.strip(_AROUND))]
    return " ".join(words) or "".join(folded.split())


def distinct(keys: Sequence[str]) -> list[int]:
    """The first of each different answer; empty ones are none where others exist."""
    firsts: dict[str, int] = {}
    for at, key in enumerate(keys):
        firsts.setdefault(key, at)
    if len(firsts) > 1:
        firsts.pop("", None)
    return list(firsts.values())


def majority(keys: Sequence[str]) -> Verdict:
    """The answer that most gave; of several, the one that was given first."""
    return max((chosen(keys, at) for at in distinct(keys)), key=lambda verdict: len(verdict.voters))


def chosen(keys: Sequence[str], at: int) -> Verdict:
    """The answer at `at`, and how many say the same."""
    voters = tuple(place for place, key in enumerate(keys) if key == keys[at])
    return Verdict(at, voters, len(voters) / len(keys))


def medoid(keys: Sequence[str], vectors: Sequence[Sequence[float]]) -> Verdict:
    """The answer with the highest mean cosine to the others, which is the agreement; of several, the first.

    The sum of all unit vectors holds every cosine at once: their mean over the others is (v · sum - v · v) / (n - 1).
    """
    units = [_unit(vector) for vector in vectors]
    total = [sum(column) for column in zip(*units, strict=True)]
    others = max(1, len(units) - 1)
    means = [(sum(map(mul, unit, total)) - sum(map(mul, unit, unit))) / others for unit in units]
    at = max(range(len(means)), key=means.__getitem__)
    return Verdict(at, chosen(keys, at).voters, min(1.0, max(0.0, means[at])))


def _unit(vector: Sequence[float]) -> list[float]:
    """The vector at length 1; one that has no direction is near to nothing."""
    length = sqrt(sum(map(mul, vector, vector)))
    return [x / length for x in vector] if length > 0 and isfinite(length) else [0.0] * len(vector)


def judge_prompt(question: str, answers: Sequence[str]) -> str:
    """A text that a judge goes on with the number of the best answer, from 1."""
    room = _ANSWERS_CHARS_MAX // len(answers)
    listed = "\n\n".join(f"Answer {number}:\n{text.strip()[:room]}" for number, text in enumerate(answers, 1))
    return (
        f"Question:\n{question.strip()[-_QUESTION_CHARS_MAX:]}\n\n{listed}\n\n"
        f"Which of the answers 1 to {len(answers)} is the best: correct first, then clear?\n"
        "The number of the best answer:"
    )


def judge_grammar(count: int) -> str:
    """GBNF that allows the numbers 1 to `count` and nothing else."""
    numbers = " | ".join(f'"{number}"' for number in range(1, count + 1))
    return f'root ::= " "? ({numbers})'


def judged(said: str, count: int) -> int | None:
    """Which answer, counted from 0, a judge chose; None when it did not say."""
    number = re.search(r"[0-9]{1,3}", said)
    at = int(number[0]) - 1 if number is not None else -1
    return at if 0 <= at < count else None
