"""What guesses gain, where a text repeats itself, and cost, where it does not: one stream with and without, in turns.

Answers of 256 tokens, their prompts cached; rates count from the first token on. Both sides have the same seed, so
nearly always the same text. Rates hang on whatever else the device does, so passes are counted as well, each guess at
what its pass costs: the worst answer of each kind is bounded by that. A table that changes a word in each row makes
guesses come half true. A draft model that is a copy of its model cannot win, and has to find that out for next to
nothing; one that says the same in a tenth of the time has to win.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from pydoc_data import topics

import gguf

from h2qd.wire.workers import Generate, Generated, Sampler
from h2qd.worker.llama.drafts import DRAFT_TOKENS, PASS_COST
from tests import architectures
from tests.bench import figures, tasks
from tests.bench.figures import Bound, Row
from tests.bench.setting import Setting, prompts, rounds

COPY_RATIO_MIN = 1.2
PROSE_RATIO_MIN = 0.98
COUNTED_RATIO_MIN = 0.95
DRAFT_RATIO_MIN = 0.95
TWIN_RATIO_MIN = 1.1
TOKENS = 256
_PROMPTS = 6
_CTX = 4096
_SECONDS_MAX = 120


def bench(setting: Setting) -> Iterator[Row]:
    """Rates in tokens/s."""
    with tasks.engine(setting.model, _CTX) as engine:
        yield from _looked_up(engine, "of a text said again", _copies(), 0.0, COPY_RATIO_MIN)
        yield from _looked_up(engine, "of a table with other words", _tables(), 0.0, None)
        yield from _looked_up(engine, "of prose", _prose(), 0.8, PROSE_RATIO_MIN)
    draft = setting.folder / "draft.gguf"
    shutil.copy(setting.model, draft)
    with tasks.engine(setting.model, _CTX, draft) as engine:
        row, _ = _rows(engine, "of prose, a copy as its draft", _prose(), 0.8, DRAFT_RATIO_MIN)
        yield row
    deep, shallow = _twins(setting.folder)
    with tasks.engine(deep, _CTX, shallow) as engine:
        row, _ = _rows(engine, "of a made-up model, a shallow twin as its draft", _prose(), 0.0, TWIN_RATIO_MIN)
        yield row


def _looked_up(
    engine: tasks.Tasks, what: str, texts: Sequence[str], temperature: float, ratio_min: float | None
) -> Iterator[Row]:
    row, guessed = _rows(engine, what, texts, temperature, ratio_min)
    yield row
    drafted = sum(end.drafted_tokens for end in guessed)
    accepted = sum(end.accepted_tokens for end in guessed)
    yield Row(f"stream {what}: tokens that came true, of those guessed", "tokens", accepted, drafted)
    yield Row(
        f"stream {what}: tokens for each pass's time, counted, the worst answer",
        "tokens",
        min(map(_counted, guessed)),
        bound=Bound(COUNTED_RATIO_MIN, of="figure", at_least=True),
    )


def _rows(
    engine: tasks.Tasks, what: str, texts: Sequence[str], temperature: float, ratio_min: float | None
) -> tuple[Row, list[Generated]]:
    """Rates with guesses against those without, and the ends of the former."""
    guessed: list[Generated] = []
    plain: list[Generated] = []
    for turn in rounds(len(texts), _SECONDS_MAX):
        sampler = Sampler(temperature=temperature, seed=turn)
        sides = [(True, guessed), (False, plain)]
        _answer(engine, texts[turn], sampler, 1, speculate=False)
        for speculate, ends in sides if turn % 2 else reversed(sides):
            ends.append(_answer(engine, texts[turn], sampler, TOKENS, speculate=speculate))
    row = figures.paired(
        f"stream {what}, with guesses",
        "tokens/s",
        [_rate(end) for end in guessed],
        [_rate(end) for end in plain],
        None if ratio_min is None else Bound(ratio_min, at_least=True),
    )
    return row, guessed


def _counted(end: Generated) -> float:
    """Tokens for each pass of one token that an answer took; a pass that checks a guess counts as what it costs."""
    checks = -(-end.drafted_tokens // DRAFT_TOKENS)
    plain = end.completion_tokens - 1 - end.accepted_tokens - checks
    return (end.completion_tokens - 1) / (plain + PASS_COST * checks)


def _answer(engine: tasks.Tasks, prompt: str, sampler: Sampler, tokens: int, *, speculate: bool) -> Generated:
    end = engine.done(Generate(1, tokens, sampler, prompt=prompt, ignore_eos=True, speculate=speculate))
    assert isinstance(end, Generated)
    return end


def _rate(end: Generated) -> float:
    return (end.completion_tokens - 1) / end.decode_ms * 1000


def _twins(folder: Path) -> tuple[Path, Path]:
    """Two made-up models that say the same: all but the first layers of the deep one add nothing."""
    keys = architectures.LLAMA_F32.keys | {
        "attention.head_count": 8,
        "attention.head_count_kv": 4,
        "feed_forward_length": 1408,
        "rope.dimension_count": 64,
    }
    tiny = replace(
        architectures.LLAMA_F32,
        matrices=gguf.GGMLQuantizationType.Q8_0,
        vocabulary=4000,
        embedding=512,
        keys=keys,
        tied=True,
    )
    shallow = architectures.write_model(tiny, folder / "shallow.gguf")
    deep = architectures.write_model(replace(tiny, layers=12 * tiny.layers), folder / "deep.gguf")
    for tensor in gguf.GGUFReader(deep, "r+").tensors:
        adds = tensor.name.endswith((".attn_output.weight", ".ffn_down.weight"))
        if adds and int(tensor.name.split(".")[1]) >= tiny.layers:
            tensor.data[:] = 0  # what is added to the residual stream
    return deep, shallow


def _prose() -> list[str]:
    return list(islice(prompts(), _PROMPTS))


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
