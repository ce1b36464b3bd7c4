"""A draft model in the engine: it changes no text, catches up with any, goes with its model, and is never in the way.

On tiny models of f32 weights, which no batch's shape rounds away; what guesses are worth is for `wager`'s own tests.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from h2qd.gguf.reader import identity
from h2qd.wire.workers import (
    DraftFile,
    LoadModel,
    ResumeModel,
    Sampler,
    Text,
)
from h2qd.worker.engine import Beat
from tests import architectures
from tests.adapters import adapter_file, write_adapter

LlamaEngine = pytest.importorskip("h2qd.worker.llama.engine").LlamaEngine
draft_model = pytest.importorskip("h2qd.worker.llama.draft_model")
steps = pytest.importorskip("tests.steps")

SLOTS, SHARE, THREADS, DRAFT_CTX = 2, 1024, 1, 256
GUESSES = 4
PROMPT = "the quick brown fox jumps over the lazy dog"
OTHER = "a small computer in the corner"
LONG = " ".join(f"{PROMPT} {number}" for number in range(8))
SAMPLED = Sampler(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=7)
"""Texts that do not go round in circles, where guesses from the text itself would come first."""


class Eager(draft_model.Wager):  # type: ignore[name-defined, misc]
    """Always guesses."""

    measured = True

    def silent(self) -> bool:
        return False

    def count(self, room: int) -> int:
        return min(room, GUESSES)

    def drafted(self, tokens: int, took_s: float) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drafts")
    model = architectures.write_model(architectures.LLAMA_F32, folder / "llama.gguf")
    shutil.copy(model, folder / "copy.gguf")
    keys = architectures.LLAMA_F32.keys | {"rope.dimension_count": 16}
    small = replace(architectures.LLAMA_F32, embedding=64, layers=1, keys=keys)
    architectures.write_model(small, folder / "small.gguf")
    architectures.write_model(replace(small, vocabulary=601), folder / "wider.gguf")
    architectures.write_model(replace(small, merges=True), folder / "merging.gguf")
    architectures.write_model(replace(architectures.BERT, vocabulary=600), folder / "bert.gguf")
    architectures.write_model(replace(architectures.MODELS["mamba"], layers=1, vocabulary=600), folder / "mamba.gguf")
    (folder / "broken.gguf").write_bytes(model.read_bytes()[:-4096])
    write_adapter(folder / "polite.gguf", model, 1)
    return folder


def draft_file(folder: Path, name: str) -> DraftFile:
    path = folder / f"{name}.gguf"
    return DraftFile(name, str(path), list(identity(os.stat(path))) if path.exists() else [])  # noqa: PTH116


def order(folder: Path, with_draft: str = "", model: str = "llama", **options: Any) -> LoadModel:
    defaults: dict[str, Any] = {"slots": SLOTS, "batch": 128, "outputs": 8, "sha256": "ab" * 32}
    if with_draft:
        defaults |= {"draft": draft_file(folder, with_draft), "draft_ctx": DRAFT_CTX}
    return LoadModel("llama", str(folder / f"{model}.gguf"), SHARE * SLOTS, THREADS, **(defaults | options))


def opened(order: LoadModel) -> tuple[Any, str]:
    """The engine, and why it has no draft."""
    engine = LlamaEngine(Beat())
    return engine, engine.load(order, lambda _: None).undrafted


@pytest.fixture(scope="module")
def plain(folder: Path) -> Iterator[Any]:
    engine, _ = opened(order(folder))
    yield engine
    engine.close()


@pytest.fixture(params=["copy", "small"])
def drafted(folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The same with a draft that is right, and one that is wrong, both always asked."""
    monkeypatch.setattr(draft_model, "Wager", Eager)
    engine, undrafted = opened(order(folder, request.param))
    assert undrafted == ""
    yield engine, request.param == "copy"
    engine.close()


def answer(engine: Any, prompt: str = PROMPT, max_tokens: int = 60, **options: Any) -> Any:
    steps.batch_of(engine).context.clear_all()
    return steps.answer(engine, prompt, max_tokens=max_tokens, **options)


def draft_cache(engine: Any) -> list[int]:
    """The tokens that the draft has seen."""
    model = steps.batch_of(engine).draft_model
    assert model._context.agrees(model._cache)
    tokens: list[int] = model._cache.tokens
    return tokens


# --- what it says -----------------------------------------------------------------------------------


def test_a_right_draft_is_believed_and_a_wrong_one_is_not(drafted: Any, plain: Any) -> None:
    engine, right = drafted
    (text, end), (wanted, _) = answer(engine), answer(plain, speculate=False)
    assert text == wanted
    passes = 60 - end.accepted_tokens
    if right:
        assert end.accepted_tokens > 0.8 * end.drafted_tokens, "some may have been looked up"
        assert end.drafted_tokens >= 40
        assert passes < 20
    else:
        assert end.drafted_tokens >= 40
        assert end.accepted_tokens < end.drafted_tokens / 2


@pytest.mark.parametrize("sampler", [SAMPLED, Sampler(temperature=0, repeat_penalty=1.3)])
def test_a_seed_has_its_text(drafted: Any, plain: Any, sampler: Sampler) -> None:
    engine, _ = drafted
    text, end = answer(engine, sampler=sampler, max_tokens=200, logprobs=0)
    assert text == answer(plain, sampler=sampler, max_tokens=200, speculate=False)[0]
    assert end.drafted_tokens > 0


@pytest.mark.parametrize("max_tokens", range(1, 9))
def test_an_answer_ends_where_it_would_without(drafted: Any, plain: Any, max_tokens: int) -> None:
    engine, _ = drafted
    text, end = answer(engine, max_tokens=max_tokens)
    assert (text, end.completion_tokens) == (answer(plain, max_tokens=max_tokens)[0], max_tokens)
    assert end.drafted_tokens <= max_tokens * GUESSES


def test_it_follows_a_text_that_outgrows_its_context(drafted: Any, plain: Any) -> None:
    engine, right = drafted
    text, end = answer(engine, max_tokens=700, sampler=SAMPLED)
    assert text == answer(plain, max_tokens=700, sampler=SAMPLED, speculate=False)[0]
    assert end.prompt_tokens + end.completion_tokens > 2 * DRAFT_CTX
    assert len(draft_cache(engine)) <= DRAFT_CTX
    if right:
        assert end.drafted_tokens > 700


def test_a_long_prompt_is_not_read_from_its_beginning(drafted: Any, plain: Any) -> None:
    engine, _ = drafted
    text, end = answer(engine, LONG, max_tokens=30)
    assert text == answer(plain, LONG, max_tokens=30, speculate=False)[0]
    read = draft_cache(engine)
    assert end.prompt_tokens > DRAFT_CTX > len(read)
    assert end.drafted_tokens > 0


def test_texts_in_turns_are_each_followed(drafted: Any, plain: Any) -> None:
    engine, _ = drafted
    for prompt in (PROMPT, OTHER, LONG, "", OTHER, LONG + OTHER, PROMPT):
        assert answer(engine, prompt, max_tokens=20)[0] == answer(plain, prompt, max_tokens=20, speculate=False)[0]


def test_a_shifted_text_is_followed(drafted: Any, plain: Any) -> None:
    engine, _ = drafted
    options: dict[str, Any] = {"max_tokens": 300, "overflow": "shift", "sampler": SAMPLED}
    text, end = answer(engine, LONG * 2, **options)
    assert end.prompt_tokens + end.completion_tokens > SHARE
    assert text == answer(plain, LONG * 2, speculate=False, **options)[0]
    assert end.drafted_tokens > 0


# --- when it is asked -------------------------------------------------------------------------------


def test_nothing_is_guessed_in_company_or_where_nobody_wants_it(drafted: Any) -> None:
    engine, _ = drafted
    steps.batch_of(engine).context.clear_all()
    for request, prompt in enumerate((PROMPT, OTHER), 1):
        steps.submit(engine, request, prompt, max_tokens=30, sampler=SAMPLED)
    heard = steps.run(engine)
    assert [steps.end_of(heard, request).drafted_tokens for request in (1, 2)] == [0, 0]
    assert answer(engine, speculate=False)[1].drafted_tokens == 0


def test_an_adapter_changes_what_it_knows_nothing_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft_model, "Wager", Eager)
    path = folder / "polite.gguf"
    files = [adapter_file("polite", path)]
    engine, undrafted = opened(order(folder, "copy", adapters=files))
    assert undrafted == ""
    for sampler in (SAMPLED, msgspec.structs.replace(SAMPLED, seed=8)):
        assert answer(engine, adapters={"polite": 1.0}, sampler=sampler)[1].drafted_tokens == 0
        assert answer(engine, sampler=sampler)[1].drafted_tokens > 0
    engine.close()


def test_what_was_said_before_is_looked_up_first(drafted: Any) -> None:
    """In a text that goes round in circles the draft is asked no more."""
    engine, _ = drafted
    model = steps.batch_of(engine).draft_model
    answer(engine, "ab" * 40, max_tokens=100)
    before = list(model._cache.tokens)
    text, end = answer(engine, "ab" * 40, max_tokens=400)
    assert end.accepted_tokens > 200, text[-60:]
    assert len(draft_cache(engine)) < len(before) + 300


def test_a_cancel_ends_an_answer_while_a_draft_catches_up(drafted: Any) -> None:
    engine, _ = drafted
    steps.batch_of(engine).context.clear_all()
    steps.submit(engine, 1, LONG, max_tokens=500, sampler=SAMPLED)
    steps.run(engine, until=lambda heard: any(isinstance(said, Text) for said in heard))
    engine.step()
    read = len(draft_cache(engine))
    assert 0 < read < draft_model.FRESH_TOKENS, "a piece at a time"
    engine.cancel(1)
    end = engine.step()[-1]
    assert (end.finish, engine.busy) == ("cancelled", False)
    assert answer(engine)[1].finish == "length"


def test_a_failure_of_the_draft_costs_the_guesses_only(
    folder: Path, plain: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(draft_model, "Wager", Eager)
    engine, _ = opened(order(folder, "copy"))
    model = steps.batch_of(engine).draft_model

    def refuses(*_: object, **__: object) -> None:
        raise draft_model.DecodeError(-3)

    monkeypatch.setattr(model._context, "decode", refuses)
    text, end = answer(engine, sampler=SAMPLED)
    assert text == answer(plain, sampler=SAMPLED, speculate=False)[0]
    assert end.drafted_tokens == 0
    assert capfd.readouterr().err.count("draft.failed") == 1
    engine.close()


# --- its life ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draft", "why"),
    [
        ("wider", "its vocabulary is not that of the model: it has 601 tokens, the other 600"),
        ("merging", "its vocabulary is not that of the model: they are of different kinds"),
        ("bert", "models made to turn texts into vectors say nothing"),
        ("mamba", "a recurrent model cannot take guesses back"),
        ("broken", "cannot load the model"),
        ("none", "its file cannot be read"),
    ],
)
def test_a_draft_that_cannot_be_used_is_told_of_and_costs_no_load(
    folder: Path, plain: Any, draft: str, why: str
) -> None:
    engine, undrafted = opened(order(folder, draft))
    assert undrafted.startswith(why)
    assert answer(engine)[0] == answer(plain)[0]
    engine.park()
    assert engine.resume(resume(DRAFT_CTX)).undrafted == undrafted
    engine.close()


def test_a_draft_whose_file_changed_is_not_loaded(folder: Path, tmp_path: Path) -> None:
    path = shutil.copy(folder / "copy.gguf", tmp_path / "draft.gguf")
    file = draft_file(tmp_path, "draft")
    os.utime(path, (1, 1))
    engine, undrafted = opened(order(folder, draft=file, draft_ctx=DRAFT_CTX))
    assert undrafted == "its file is another one than when it was registered"
    engine.close()


def test_a_recurrent_model_takes_no_draft(folder: Path) -> None:
    engine, undrafted = opened(order(folder, "small", model="mamba"))
    assert undrafted == "a recurrent model cannot take guesses back"
    engine.close()


def resume(draft_ctx: int) -> ResumeModel:
    return ResumeModel(SHARE * SLOTS, SLOTS, batch=128, outputs=8, draft_ctx=draft_ctx)


def test_parking_frees_its_context_too_and_a_return_may_be_without(drafted: Any, plain: Any) -> None:
    engine, _ = drafted
    model = engine._loaded.model
    engine.park()
    assert (model.context, model.draft.context) == (0, 0)
    assert engine.resume(resume(0)).undrafted == ""
    assert model.draft.context == 0
    assert answer(engine, sampler=SAMPLED)[1].drafted_tokens == 0
    engine.park()
    assert engine.resume(resume(DRAFT_CTX)).undrafted == ""
    text, end = answer(engine, sampler=SAMPLED)
    assert (text, end.drafted_tokens > 0) == (answer(plain, sampler=SAMPLED)[0], True)


def test_a_model_that_came_without_a_draft_comes_back_without_it(folder: Path) -> None:
    engine, undrafted = opened(order(folder))
    assert undrafted == ""
    engine.park()
    assert engine.resume(resume(DRAFT_CTX)).undrafted == "it was not loaded with the model"
    engine.close()


def test_a_session_goes_on_from_its_file_with_a_draft(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft_model, "Wager", Eager)
    session: dict[str, Any] = {"session": "1000-a", "max_tokens": 40, "sampler": SAMPLED}

    def conversation(draft: str) -> list[tuple[str, int]]:
        """Two turns, the second after the model was away: their texts, and how many tokens were cached."""
        turns, prompt = [], PROMPT
        for _ in range(2):
            options: dict[str, Any] = {"sessions": str(tmp_path / (draft or "plain")), "sessions_bytes": 2**30}
            engine, undrafted = opened(order(folder, draft, **options))
            assert undrafted == ""
            text, end = steps.answer(engine, prompt, **session)
            assert (end.drafted_tokens > 0) == bool(draft)
            assert engine.save().saved == 1
            engine.close()
            turns.append((text, end.cached_tokens))
            prompt += text + OTHER
        return turns

    found = conversation("copy")
    assert found == conversation("")
    assert found[1][1] > 30


def test_left_to_itself_it_changes_no_text_either(folder: Path, plain: Any) -> None:
    """Whatever a draft that takes as long as its model is found to be worth here."""
    engine, undrafted = opened(order(folder, "copy"))
    assert undrafted == ""
    text, _ = answer(engine, sampler=SAMPLED, max_tokens=400)
    assert text == answer(plain, sampler=SAMPLED, max_tokens=400)[0]
    engine.close()
