"""LoRA adapters in the engine: what they change, whom they leave alone, and which files are refused.

On a tiny model of f32 weights, which no batch's shape rounds away, beside the raw library.
"""

import ctypes
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from h2qd.wire.workers import AdapterFile, LoadModel, ResumeModel, ScoreText
from h2qd.worker.engine import Beat, EngineError
from tests import architectures
from tests.adapters import adapter_file, write_adapter

native = pytest.importorskip("llama_cpp").llama_cpp
LlamaEngine = pytest.importorskip("h2qd.worker.llama.engine").LlamaEngine
steps = pytest.importorskip("tests.steps")

SLOTS, SHARE, THREADS, TOKENS = 4, 1024, 1, 12
PROMPT = "the quick brown fox jumps over the lazy dog and then sleeps by the river until the sun is up again"
POLITE, RUDE, BOTH = {"polite": 1.0}, {"rude": -0.5}, {"rude": 1.0, "polite": 0.25}
KEY = "1000-a"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    model = architectures.write_model(architectures.LLAMA_F32, folder / "llama.gguf")
    for seed, name in enumerate(("polite", "rude"), 1):
        write_adapter(folder / f"{name}.gguf", model, seed)
    return folder


def order(folder: Path, *names: str, **options: Any) -> LoadModel:
    files = [adapter_file(name, folder / f"{name}.gguf") for name in names]
    defaults: dict[str, Any] = {"slots": SLOTS, "batch": 128, "outputs": 8, "sha256": "ab" * 32}
    return LoadModel(
        "llama",
        str(folder / "llama.gguf"),
        SHARE * SLOTS,
        THREADS,
        adapters=files,
        **(defaults | options),
    )


def opened(order: LoadModel) -> Any:
    engine = LlamaEngine(Beat())
    engine.load(order, lambda _: None)
    return engine


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Any]:
    engine = opened(order(folder, "polite", "rude"))
    yield engine
    engine.close()


@pytest.fixture
def fresh(engine: Any) -> Any:
    """The engine, with nothing kept of other tests."""
    steps.batch_of(engine).context.clear_all()
    return engine


def answer(engine: Any, adapters: dict[str, float], prompt: str = PROMPT, **options: Any) -> str:
    text, _ = steps.answer(engine, prompt, adapters=adapters, max_tokens=TOKENS, **options)
    assert isinstance(text, str)
    return text


def logits(path: Path, tokens: list[int], adapters: dict[str, float]) -> NDArray[np.float32]:
    """After `tokens`, by the library alone."""
    model = native.llama_model_load_from_file(str(path / "llama.gguf").encode(), native.llama_model_default_params())
    files = [native.llama_adapter_lora_init(model, str(path / f"{name}.gguf").encode()) for name in adapters]
    params = native.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = SHARE, THREADS, THREADS
    context = native.llama_init_from_model(model, params)
    addresses = (native.llama_adapter_lora_p_ctypes * len(files))(*files)
    scales = (ctypes.c_float * len(files))(*adapters.values())
    assert native.llama_set_adapters_lora(context, addresses, len(files), scales) == 0
    some = (native.llama_token * len(tokens))(*tokens)
    assert native.llama_decode(context, native.llama_batch_get_one(some, len(tokens))) == 0
    last = native.llama_get_logits_ith(context, -1)
    found: NDArray[np.float32] = np.ctypeslib.as_array(last, (architectures.LLAMA_F32.vocabulary,)).copy()
    native.llama_free(context)
    native.llama_model_free(model)
    return found


# --- what they change -------------------------------------------------------------------------------


@pytest.mark.parametrize("adapters", [{}, POLITE, RUDE, BOTH])
def test_the_same_as_the_library_computes(fresh: Any, folder: Path, adapters: dict[str, float]) -> None:
    """How likely the first token's rivals are: as the library says with the same adapters, and not with others."""
    steps.submit(fresh, 1, PROMPT, adapters=adapters, max_tokens=1, logprobs=20)
    (chosen,) = [token for said in steps.run(fresh) for token in getattr(said, "logprobs", [])]
    vocabulary = fresh._loaded.vocabulary
    prompt = [vocabulary.bos, *vocabulary.tokenize(PROMPT, special=False)]

    def off(others: dict[str, float]) -> float:
        theirs = logits(folder, prompt, others).astype(np.float64)
        theirs -= np.log(np.exp(theirs - theirs.max()).sum()) + theirs.max()
        return float(max(abs(one.logprob - theirs[one.token]) for one in chosen.top))

    assert off(adapters) < 1e-4
    assert all(off(others) > 1e-3 for others in ({}, POLITE, RUDE, BOTH) if others != adapters)


def test_each_set_has_a_text_of_its_own_and_scale_0_is_none(fresh: Any) -> None:
    texts = [answer(fresh, adapters) for adapters in ({}, POLITE, RUDE, BOTH, {"polite": 0.5})]
    assert len(set(texts)) == len(texts)
    assert answer(fresh, {"polite": 0.0}) == texts[0]
    assert answer(fresh, {"polite": 1.0, "rude": 0.0}) == texts[1]


def test_no_cell_serves_another_set(fresh: Any) -> None:
    alone = answer(fresh, POLITE)
    steps.batch_of(fresh).context.clear_all()
    answer(fresh, {})
    text, end = steps.answer(fresh, PROMPT, adapters=POLITE, max_tokens=TOKENS)
    assert (text, end.cached_tokens) == (alone, 0)
    text, end = steps.answer(fresh, PROMPT, adapters=POLITE, max_tokens=TOKENS)
    assert text == alone
    assert end.cached_tokens > 0, "its own cells do"


# --- side by side -----------------------------------------------------------------------------------


def test_sets_side_by_side_answer_as_each_alone(fresh: Any) -> None:
    sets = [{}, POLITE, RUDE, BOTH]
    prompts = [f"{number} {PROMPT}" * (number + 1) for number in range(4)]
    alone = [answer(fresh, adapters, prompt) for adapters, prompt in zip(sets, prompts, strict=True)]
    steps.batch_of(fresh).context.clear_all()
    for number, (adapters, prompt) in enumerate(zip(sets, prompts, strict=True)):
        steps.submit(fresh, number, prompt, adapters=adapters, max_tokens=TOKENS)
    heard = steps.run(fresh)
    assert [steps.text_of(heard, number) for number in range(4)] == alone


def test_prompts_of_one_set_do_not_stop_the_tokens_of_another(fresh: Any) -> None:
    """Between two tokens of a stream there is at most a turn of the other set."""
    steps.submit(fresh, 1, "the quick", adapters=POLITE, max_tokens=200)
    steps.run(fresh, lambda heard: bool(steps.text_of(heard, 1)))
    for number in (2, 3):
        steps.submit(fresh, number, f"{number} {PROMPT * 4}", max_tokens=2)
    passes = {1: 0, 2: 0}
    batch = steps.batch_of(fresh)
    last = began = len(batch._open[1].text)
    while batch._open[2].rest:
        fresh.step()
        grown = len(batch._open[1].text)
        passes[1 if grown > last else 2] += 1
        last = grown
    assert passes[1] >= passes[2] - 2 > 0
    assert last > began
    fresh.cancel(1)
    steps.run(fresh)


def test_a_text_is_scored_by_the_model_alone_beside_them(fresh: Any) -> None:
    def score() -> float:
        fresh.submit(ScoreText(9, PROMPT))
        (scored,) = [
            said for said in steps.run(fresh) if getattr(said, "request", 0) == 9 and hasattr(said, "squares")
        ]
        return float(scored.logprob)

    alone = score()
    steps.submit(fresh, 1, PROMPT, adapters=POLITE, max_tokens=TOKENS)
    assert score() == pytest.approx(alone, rel=1e-5)


def test_one_who_pauses_goes_on_with_its_adapters(fresh: Any) -> None:
    alone = answer(fresh, RUDE)
    steps.batch_of(fresh).context.clear_all()
    steps.submit(fresh, 0, PROMPT, adapters=RUDE, max_tokens=TOKENS, priority=0)
    steps.run(fresh, lambda heard: bool(steps.text_of(heard, 0)))
    before = len(steps.batch_of(fresh)._open[0].text)
    for number in range(1, SLOTS + 1):
        steps.submit(fresh, number, f"{number} {PROMPT}", adapters=POLITE, max_tokens=4, priority=2)
    paused = steps.batch_of(fresh)._open[0]
    assert paused in steps.batch_of(fresh)._line
    assert len(paused.text) == before
    heard = steps.run(fresh)
    rest = steps.text_of(heard, 0)
    assert rest
    assert alone.endswith(rest)


# --- who goes and comes back ------------------------------------------------------------------------


def test_a_parked_model_keeps_them(folder: Path) -> None:
    engine = opened(order(folder, "polite"))
    before = answer(engine, POLITE)
    engine.park()
    engine.resume(ResumeModel(SHARE * SLOTS, SLOTS, batch=128, outputs=8))
    assert answer(engine, POLITE) == before
    assert answer(engine, {}) != before
    engine.close()


def test_a_session_is_of_its_adapters(folder: Path, tmp_path: Path) -> None:
    """It goes on from disk with the same ones only; another file under the name is another adapter."""
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    saving: dict[str, Any] = {"sessions": str(tmp_path / "sessions"), "sessions_bytes": 10**9, "slots": 1}
    first = order(own, "polite", **saving)

    def cached(load: LoadModel, adapters: dict[str, float]) -> int:
        engine = opened(load)
        _, end = steps.answer(engine, PROMPT + " and", adapters=adapters, session=KEY, max_tokens=2)
        engine.close()
        return int(end.cached_tokens)

    engine = opened(first)
    answer(engine, POLITE, session=KEY)
    assert engine.save().saved == 1
    engine.close()
    assert cached(first, POLITE) > 16
    assert cached(first, {}) == cached(first, {"polite": 0.5}) == 0
    write_adapter(own / "polite.gguf", own / "llama.gguf", 9)
    assert cached(order(own, "polite", **saving), POLITE) == 0


# --- what is refused --------------------------------------------------------------------------------


def test_an_adapter_that_is_not_there_is_named(fresh: Any) -> None:
    with pytest.raises(EngineError, match="cannot use the adapter kind") as error:
        steps.submit(fresh, 1, PROMPT, adapters={"kind": 1.0})
    assert error.value.code == "invalid_request"
    assert not fresh.busy


def _truncated(path: Path, model: Path) -> None:
    write_adapter(path, model)
    os.truncate(path, path.stat().st_size - 64)


def _of_another_shape(path: Path, model: Path) -> None:
    other = replace(architectures.LLAMA_F32, embedding=64)
    write_adapter(path, architectures.write_model(other, model.with_name("other.gguf")))


def _of_another_architecture(path: Path, model: Path) -> None:
    other = replace(architectures.MODELS["qwen2"], layers=1, vocabulary=600)
    write_adapter(path, architectures.write_model(other, model.with_name("other.gguf")))


def _a_model(path: Path, model: Path) -> None:
    shutil.copy(model, path)


def _a_pipe(path: Path, model: Path) -> None:
    del model
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("write", "why"),
    [
        (_truncated, "ends at byte"),
        (_of_another_shape, "do not fit"),
        (_of_another_architecture, "general.architecture is qwen2"),
        (_a_model, "not adapter"),
        (_a_pipe, "not a regular file"),
    ],
)
def test_a_file_that_is_no_adapter_of_the_model_is_refused(
    folder: Path, tmp_path: Path, write: Callable[[Path, Path], None], why: str
) -> None:
    model = shutil.copy(folder / "llama.gguf", tmp_path / "llama.gguf")
    write(tmp_path / "bad.gguf", Path(model))
    with pytest.raises(EngineError, match=why) as error:
        opened(order(tmp_path, "bad"))
    assert error.value.code == "invalid_model_file"
    assert "the adapter bad" in error.value.message


@pytest.mark.parametrize(
    ("tiny", "tensor"),
    [
        (replace(architectures.MODELS["mamba"], layers=2, vocabulary=600), "ssm_conv1d"),
        (architectures.BERT, "position_embd"),
    ],
)
def test_an_adapter_that_the_library_would_pass_over_is_refused(
    tmp_path: Path, tiny: architectures.Tiny, tensor: str
) -> None:
    """Some weights are not multiplied where the library looks for adapters: what is there for them does nothing."""
    model = architectures.write_model(tiny, tmp_path / "llama.gguf")
    works = ["ffn_up", "ssm_in"]
    for name, targets in (("polite", works), ("rude", [*works, tensor])):
        write_adapter(tmp_path / f"{name}.gguf", model, targets=targets)
    with pytest.raises(EngineError, match=f"the adapter rude.*{tensor}") as error:
        opened(order(tmp_path, "polite", "rude"))
    assert error.value.code == "invalid_model_file"
    opened(order(tmp_path, "polite")).close()


def test_a_file_that_grew_or_went_is_refused(folder: Path, tmp_path: Path) -> None:
    loaded = order(folder, "polite")
    (file,) = loaded.adapters
    for changed, code in (
        (AdapterFile("polite", file.path, file.size_bytes - 1), "invalid_model_file"),
        (AdapterFile("polite", str(tmp_path / "none.gguf"), file.size_bytes), "file_not_found"),
    ):
        with pytest.raises(EngineError, match="the adapter polite") as error:
            opened(msgspec.structs.replace(loaded, adapters=[changed]))
        assert error.value.code == code
