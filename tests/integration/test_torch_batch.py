"""Several requests at a time on a model folder: what they say together is what each says alone."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from h2qd.worker.engine import Beat

pytest.importorskip("torch")

from h2qd.safetensors.families import FAMILIES
from h2qd.wire.workers import (
    Embedded,
    EmbedTexts,
    Generate,
    Generated,
    LoadModel,
    Sampler,
    Scored,
    ScoreText,
    Text,
    TokenizeText,
)
from h2qd.worker.torch.engine import TorchEngine
from tests import folders
from tests.torch_steps import run

GREEDY = Sampler(temperature=0)
DRAWN = Sampler(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=7)
LOW, NORMAL, HIGH = 0, 1, 2
LENGTHS = {1: 5, 2: 40, 3: 23}
"""Of prompts, in tokens without the first: some shorter than a window, some longer."""

WINDOW = {"sliding_window": 16}
SIZES: dict[str, dict[str, Any]] = {
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, **WINDOW},
    "gemma3_text": {"head_dim": 16, **WINDOW},
    "mistral": WINDOW,
    "phi3": WINDOW,
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1, **WINDOW},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 1, "head_dim": 16, **WINDOW},
    "starcoder2": WINDOW,
}


def opened(path: Path, slots: int, beat: Beat | None = None) -> TorchEngine:
    engine = TorchEngine(beat or Beat())
    engine.load(LoadModel("torch", str(path), 256 * slots, threads=1, slots=slots), lambda _: None)
    return engine


def generate(request: int, **fields: Any) -> Generate:
    prompt = "the quick brown fox jumps over the lazy dog. "[: LENGTHS.get(request, 9)]
    wanted = {"max_tokens": 24, "sampler": GREEDY, "prompt": prompt, "ignore_eos": True, "logprobs": 0, **fields}
    return Generate(**{"request": request, **wanted})


def tokens_of(messages: list[Any]) -> list[int]:
    return [one.token for message in messages if isinstance(message, Text) for one in message.logprobs]


def chances_of(messages: list[Any]) -> list[float]:
    return [one.logprob for message in messages if isinstance(message, Text) for one in message.logprobs]


def alone(engine: TorchEngine, *orders: Generate) -> dict[int, list[Any]]:
    return {order.request: run(engine, order)[order.request] for order in orders}


def assert_same(together: dict[int, list[Any]], apart: dict[int, list[Any]]) -> None:
    for request, messages in apart.items():
        assert tokens_of(together[request]) == tokens_of(messages)
        assert chances_of(together[request]) == pytest.approx(chances_of(messages), abs=1e-3)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.tiny(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def engine(llama: Path) -> Iterator[TorchEngine]:
    engine = opened(llama, slots=3)
    yield engine
    engine.close()


@pytest.mark.parametrize("kind", [kind for kind, family in FAMILIES.items() if family.generates])
def test_every_family_says_together_what_it_says_alone(tmp_path: Path, kind: str) -> None:
    folders.tiny(tmp_path, kind, **SIZES.get(kind, {}))
    engine = opened(tmp_path, slots=3)
    orders = [generate(request) for request in LENGTHS]
    assert_same(run(engine, *orders), alone(engine, *orders))
    engine.close()


def letters(engine: TorchEngine) -> Sampler:
    """One letter again and again, so that each token is text at once."""
    (tokenized,) = run(engine, TokenizeText(1, "q"))[1]
    return Sampler(temperature=0, logit_bias={tokenized.tokens[0]: 1000.0})


def test_whoever_decodes_shares_each_pass(engine: TorchEngine) -> None:
    sampler = letters(engine)
    for request in LENGTHS:
        engine.submit(generate(request, sampler=sampler))
    told = []
    while engine.busy:
        told.append({message.request for message in engine.step() if isinstance(message, Text)})
    assert told.count({1, 2, 3}) >= 24 - 2 * len(LENGTHS)
    assert len(told) < 24 * 2


def test_draws_are_each_requests_own(engine: TorchEngine) -> None:
    orders = [generate(request, sampler=DRAWN) for request in LENGTHS]
    apart = alone(engine, *orders)
    assert_same(run(engine, *orders), apart)
    assert len({tuple(tokens_of(messages)) for messages in apart.values()}) == 3


def test_models_whose_positions_go_by_the_longest_row_take_turns(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scaled = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 32,
    }
    folders.tiny(tmp_path, "phi3", rope_parameters=scaled, original_max_position_embeddings=32)
    engine = opened(tmp_path, slots=3)
    assert "torch.decodes_by_turns" in capfd.readouterr().err
    orders = [generate(1, max_tokens=12), generate(3, max_tokens=12)]  # only one of them gets long
    assert_same(run(engine, *orders), alone(engine, *orders))
    engine.close()


def test_a_stream_goes_on_beside_a_long_prompt(engine: TorchEngine) -> None:
    engine.submit(generate(1, sampler=letters(engine), max_tokens=200))
    while not any(isinstance(message, Text) for message in engine.step()):
        pass
    engine.submit(generate(2, prompt="x" * 200, max_tokens=1))
    streamed = []
    while True:
        said = engine.step()
        streamed.append(any(isinstance(message, Text) and message.request == 1 for message in said))
        if any(isinstance(message, Generated) for message in said):
            break
    engine.cancel(1)
    engine.step()
    assert not engine.busy
    assert len(streamed) > 2
    assert all(one or other for one, other in pairwise(streamed))  # a token between any two pieces


class _Cancelling(Beat):
    """Cancels at a tick that comes from within a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.engine: TorchEngine | None = None
        self.cancels: tuple[int, ...] = ()
        self.at = 0

    def tick(self) -> None:
        super().tick()
        if self.engine is not None and self.count == self.at:
            for request in self.cancels:
                self.engine.cancel(request)


@pytest.mark.parametrize("cancels", [(1,), (1, 2, 3)])
def test_a_cancel_within_a_pass_ends_who_is_meant_and_nobody_else(llama: Path, cancels: tuple[int, ...]) -> None:
    beat = _Cancelling()
    beat.engine = engine = opened(llama, 3, beat)
    orders = [generate(request) for request in LENGTHS]
    apart = alone(engine, *orders)
    heard: dict[int, list[Any]] = {request: [] for request in LENGTHS}
    for order in orders:
        engine.submit(order)
    while not all(heard.values()):
        for message in engine.step():
            heard[message.request].append(message)
    beat.cancels, beat.at = cancels, beat.count + 3  # the step's own tick, the first layer's, the second's
    while engine.busy:
        for message in engine.step():
            heard[message.request].append(message)
    for request, messages in heard.items():
        end = messages[-1]
        assert isinstance(end, Generated)
        assert end.finish == ("cancelled" if request in cancels else "length")
        assert tokens_of(messages) == tokens_of(apart[request])[: end.completion_tokens]
        assert end.completion_tokens < 24 or request not in cancels
    engine.close()


def seated(engine: TorchEngine) -> int:
    batch = engine._batch
    assert batch is not None
    return sum(work._cells is not None for work in batch._open.values())


def test_a_higher_priority_takes_a_slot_and_what_paused_goes_on_as_if_nothing_was(llama: Path) -> None:
    engine = opened(llama, slots=1)
    low = generate(1, priority=LOW, sampler=DRAWN)
    high = generate(2, priority=HIGH)
    apart = alone(engine, low, high)
    engine.submit(low)
    heard: dict[int, list[Any]] = {1: [], 2: []}
    while len(tokens_of(heard[1])) < 5:
        heard[1] += engine.step()
    engine.submit(high)
    ends = []
    while engine.busy:
        assert seated(engine) <= 1
        for message in engine.step():
            heard[message.request].append(message)
            ends += [message.request] * isinstance(message, Generated)
    assert ends == [2, 1]
    assert_same(heard, apart)
    engine.close()


def test_what_only_reads_can_pause_too(llama: Path) -> None:
    engine = opened(llama, slots=1)
    text = "It was a dark and stormy night; the rain fell in torrents. " * 4
    for order in (
        ScoreText(1, text, logprobs=True, priority=LOW),
        ScoreText(1, text, window=64, priority=LOW),
        EmbedTexts(1, [text], priority=LOW),
    ):
        apart: Any = run(engine, order)[1][-1]
        engine.submit(order)
        assert not any(message.request != 1 or isinstance(message, Embedded | Scored) for message in engine.step())
        engine.submit(generate(2, priority=HIGH, max_tokens=2))
        paused: list[Any] = [message for _ in range(1000) if engine.busy for message in engine.step()]
        assert [message.request for message in paused if isinstance(message, Generated)] == [2]
        again = paused[-1]
        if isinstance(order, EmbedTexts):
            assert again.vectors[0] == pytest.approx(apart.vectors[0], abs=1e-5)
        else:
            assert (again.tokens, again.windows) == (apart.tokens, apart.windows)
            assert again.logprob == pytest.approx(apart.logprob, rel=1e-5)
            assert [one.token for one in again.logprobs] == [one.token for one in apart.logprobs]
    engine.close()


def test_slots_are_taken_and_left_between_steps(engine: TorchEngine) -> None:
    orders = [generate(number, max_tokens=3 + number) for number in range(6)]
    apart = alone(engine, *orders)
    for order in orders:
        engine.submit(order)
    heard: dict[int, list[Any]] = {order.request: [] for order in orders}
    most = 0
    while engine.busy:
        most = max(most, seated(engine))
        for message in engine.step():
            heard[message.request].append(message)
    assert most == 3
    assert_same(heard, apart)
