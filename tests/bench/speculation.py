"""What guesses gain, where a text repeats itself, and cost, where it does not: one stream with and without, in turns.

Answers of 256 tokens, their prompts cached; rates count from the first token on. Both sides have the same seed, so
nearly always the same text. A table that changes a word in each row is for information: guesses come half true.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pydoc_data import topics

from h2qd.wire.workers import Generate, Generated, Sampler
from tests.bench import figures, tasks
from tests.bench.figures import Bound, Row
from tests.bench.setting import Setting, prompts, rounds

COPY_RATIO_MIN = 1.2
PROSE_RATIO_MIN = 0.98
TOKENS = 256
_PROMPTS = 6
_CTX = 4096
_SECONDS_MAX = 120


def bench(setting: Setting) -> Iterator[Row]:
    """Rates in tokens/s."""
    with tasks.engine(setting.model, _CTX) as engine:
        yield from _rows(engine, "of a text said again", _copies(), 0.0, COPY_RATIO_MIN)
        yield from _rows(engine, "of a table with other words", _tables(), 0.0, None)
        yield from _rows(engine, "of prose", list(islice(prompts(), _PROMPTS)), 0.8, PROSE_RATIO_MIN)


def _rows(
    engine: tasks.Tasks, what: str, texts: Sequence[str], temperature: float, ratio_min: float | None
) -> Iterator[Row]:
    guessed: list[Generated] = []
    plain: list[Generated] = []
    for turn in rounds(len(texts), _SECONDS_MAX):
        sampler = Sampler(temperature=temperature, seed=turn)
        sides = [(True, guessed), (False, plain)]
        _answer(engine, texts[turn], sampler, 1, speculate=False)
        for speculate, ends in sides if turn % 2 else reversed(sides):
            ends.append(_answer(engine, texts[turn], sampler, TOKENS, speculate=speculate))
    yield figures.paired(
        f"stream {what}, with guesses",
        "tokens/s",
        [_rate(end) for end in guessed],
        [_rate(end) for end in plain],
        None if ratio_min is None else Bound(ratio_min, at_least=True),
    )
    drafted = sum(end.drafted_tokens for end in guessed)
    accepted = sum(end.accepted_tokens for end in guessed)
    yield Row(f"stream {what}: tokens that came true, of those guessed", "tokens", accepted, drafted)


def _answer(engine: tasks.Tasks, prompt: str, sampler: Sampler, tokens: int, *, speculate: bool) -> Generated:
    end = engine.done(Generate(1, tokens, sampler, prompt=prompt, ignore_eos=True, speculate=speculate))
    assert isinstance(end, Generated)
    return end


def _rate(end: Generated) -> float:
    return (end.completion_tokens - 1) / end.decode_ms * 1000


def _copies() -> list[str]:
    """Passages of Python's reference, twice, and how the third time begins."""
    source = topics.topics["specialnames"]
    passages = [source[start : start + 1000] for start in range(2000, 2000 + 4000 * _PROMPTS, 4000)]
    return [f"{passage}\n\n----\n\n{passage}\n\n----\n\n{passage[:100]}" for passage in passages]


def _tables() -> list[str]:
    """Lines of code that differ in a word each, to be gone on with."""
    words = ["name", "size", "place", "owner", "colour", "weight", "height", "price", "number", "title", "author"]
    line = '    def get_{0}(self):\n        """Return the {0} of this record."""\n        return self._{0}\n\n'
    return [
        "class Record:\n" + "".join(line.format(word) for word in words[turn:] + words[:turn])
        for turn in range(_PROMPTS)
    ]
