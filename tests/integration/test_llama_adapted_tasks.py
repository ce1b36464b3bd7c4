"""LoRA adapters under scores and vectors: what they change, and whom they leave alone.

On tiny models of f32 weights, which no batch's shape rounds away, beside the raw library.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from h2qd.wire.workers import (
    Embedded,
    EmbedTexts,
    GenerationFailed,
    LoadModel,
    ResumeModel,
    Scored,
    ScoreText,
    Task,
)
from h2qd.worker.engine import Beat, EngineError, Said
from tests import architectures
from tests.adapters import adapter_file, write_adapter

LlamaEngine = pytest.importorskip("h2qd.worker.llama.engine").LlamaEngine
raw_llama = pytest.importorskip("tests.raw_llama")
steps = pytest.importorskip("tests.steps")

SLOTS, THREADS = 4, 1
PROMPT = "the quick brown fox jumps over the lazy dog and then sleeps by the river until the sun is up again"
TEXTS = ["the quick", PROMPT, "by the river", PROMPT * 2]
WINDOW = 16
NONE: dict[str, float] = {}
POLITE, RUDE, BOTH = {"polite": 1.0}, {"rude": -0.5}, {"rude": 1.0, "polite": 0.25}
SETS = [NONE, POLITE, RUDE, BOTH]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, each with adapters of its own: one that generates, and one made for vectors."""
    folder = tmp_path_factory.mktemp("adapted")
    for kind, tiny in (("llama", architectures.LLAMA_F32), ("bert", architectures.BERT)):
        model = architectures.write_model(tiny, folder / f"{kind}.gguf")
        for seed, name in enumerate(("polite", "rude"), 1):
            write_adapter(folder / f"{kind}-{name}.gguf", model, seed)
    return folder


def opened(folder: Path, kind: str, share: int = 512) -> Any:
    names = ("polite", "rude")
    files = [adapter_file(name, folder / f"{kind}-{name}.gguf") for name in names]
    order = LoadModel(
        "llama",
        str(folder / f"{kind}.gguf"),
        share * SLOTS,
        THREADS,
        slots=SLOTS,
        batch=128,
        outputs=8,
        adapters=files,
    )
    engine = LlamaEngine(Beat())
    engine.load(order, lambda _: None)
    return engine


@pytest.fixture(scope="module")
def llama(folder: Path) -> Iterator[Any]:
    engine = opened(folder, "llama")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def bert(folder: Path) -> Iterator[Any]:
    engine = opened(folder, "bert")
    yield engine
    engine.close()


@pytest.fixture
def fresh(llama: Any) -> Any:
    """The engine that generates, with nothing kept of other tests."""
    steps.batch_of(llama).context.clear_all()
    return llama


def run(engine: Any, *orders: Task) -> list[Said]:
    for order in orders:
        engine.submit(order)
    heard: list[Said] = []
    while engine.busy:
        heard += engine.step()
        if engine._loaded.batch is not None:
            steps.check(engine)
    return heard


def end_of(heard: list[Said], request: int = 1) -> Any:
    (end,) = [
        said for said in heard if isinstance(said, Scored | Embedded | GenerationFailed) and said.request == request
    ]
    return end


def vectors_of(engine: Any, adapters: dict[str, float], texts: list[str] = TEXTS) -> NDArray[np.float64]:
    return np.array(end_of(run(engine, EmbedTexts(1, texts, adapters=adapters))).vectors)


def raw(folder: Path, kind: str, adapters: Mapping[str, float], *, embeddings: bool) -> Any:
    files = {folder / f"{kind}-{name}.gguf": scale for name, scale in adapters.items()}
    return raw_llama.Raw(folder / f"{kind}.gguf", embeddings=embeddings, adapters=files)


def tokens_of(engine: Any, text: str) -> list[int]:
    tokens: list[int] = engine._loaded.vocabulary.tokenize(text, special=False, framed=True)
    return tokens


def off(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    return float(np.abs(ours - theirs).max())


# --- what they change -------------------------------------------------------------------------------


@pytest.mark.parametrize("adapters", SETS)
def test_a_text_is_scored_as_the_library_finds_it_with_them(
    fresh: Any, folder: Path, adapters: dict[str, float]
) -> None:
    scored = end_of(run(fresh, ScoreText(1, PROMPT, logprobs=True, adapters=adapters)))
    ours = np.array([one.logprob for one in scored.logprobs])
    for others in SETS:
        library = raw(folder, "llama", others, embeddings=False)
        theirs = library.logprobs(tokens_of(fresh, PROMPT))
        library.close()
        assert (off(ours, theirs) < 1e-4) == (others == adapters)
    assert scored.logprob == pytest.approx(ours.sum())


@pytest.mark.parametrize("adapters", [POLITE, BOTH])
def test_each_window_is_of_them(fresh: Any, folder: Path, adapters: dict[str, float]) -> None:
    tokens = tokens_of(fresh, PROMPT * 2)
    scored = end_of(run(fresh, ScoreText(1, PROMPT * 2, window=WINDOW, adapters=adapters)))
    assert scored.windows == len(tokens) // WINDOW > 3
    library = raw(folder, "llama", adapters, embeddings=False)
    theirs = 0.0
    for start in range(0, scored.windows * WINDOW, WINDOW):
        window = [tokens[0], *tokens[start + 1 : start + WINDOW]]
        theirs += library.logprobs(window)[WINDOW // 2 :].sum()
    library.close()
    assert scored.logprob == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize("adapters", SETS)
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_each_vector_is_what_the_library_makes_with_them(
    request: pytest.FixtureRequest, folder: Path, kind: str, adapters: dict[str, float]
) -> None:
    """Of several texts in one request, and of no other set."""
    engine = request.getfixturevalue(kind)
    ours = vectors_of(engine, adapters)
    for others in SETS:
        library = raw(folder, kind, others, embeddings=True)
        for text, vector in zip(TEXTS, ours, strict=True):
            theirs = raw_llama.unit(library.vector(tokens_of(engine, text), pooled=kind == "bert"))
            difference = off(vector, theirs)
            assert difference < 5e-3 if others == adapters else difference > 5e-2  # of rounding, or of meaning
        library.close()


def test_scale_0_is_none(fresh: Any, bert: Any) -> None:
    nothing = {"polite": 0.0, "rude": 0.0}
    for engine in (fresh, bert):
        assert off(vectors_of(engine, nothing), vectors_of(engine, NONE)) < 1e-6
    scores = [end_of(run(fresh, ScoreText(1, PROMPT, adapters=adapters))).logprob for adapters in (nothing, NONE)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)


# --- side by side -----------------------------------------------------------------------------------


def test_all_kinds_of_work_side_by_side_are_as_each_alone(fresh: Any) -> None:
    answers = [steps.answer(fresh, PROMPT, adapters=adapters, max_tokens=12)[0] for adapters in (NONE, POLITE)]
    orders: list[Task] = [
        ScoreText(3, PROMPT * 2, window=WINDOW, adapters=RUDE, priority=1),
        EmbedTexts(4, TEXTS, adapters=BOTH),
        ScoreText(5, PROMPT, adapters=POLITE, priority=1),
        EmbedTexts(6, TEXTS),
    ]
    alone = [end_of(run(fresh, order), order.request) for order in orders]
    steps.batch_of(fresh).context.clear_all()
    for number, adapters in enumerate((NONE, POLITE), 1):
        steps.submit(fresh, number, PROMPT, adapters=adapters, max_tokens=12)
    heard = run(fresh, *orders)
    assert [steps.text_of(heard, number) for number in (1, 2)] == answers
    for number, before in zip((3, 4, 5, 6), alone, strict=True):
        after = end_of(heard, number)
        if isinstance(before, Scored):
            assert after.logprob == pytest.approx(before.logprob, rel=1e-5)
        else:
            assert off(np.array(after.vectors), np.array(before.vectors)) < 1e-5


def test_vectors_of_several_sets_take_turns_in_a_model_made_for_them(bert: Any) -> None:
    texts = TEXTS * 2  # two passes
    alone = [vectors_of(bert, adapters, texts) for adapters in SETS]
    for number, adapters in enumerate(SETS):
        bert.submit(EmbedTexts(number, texts, adapters=adapters))
    encoder = bert._loaded.encoder
    served: list[dict[str, float]] = []
    heard: list[Said] = []
    while bert.busy:
        heard += bert.step()
        (adapters,) = {job.adapters for job, _ in encoder._taken}
        served.append(dict(adapters))
    for number, vectors in enumerate(alone):
        assert off(np.array(end_of(heard, number).vectors), vectors) < 1e-5
    assert served == SETS * 2


def test_vectors_of_one_set_share_a_pass_in_a_model_made_for_them(bert: Any) -> None:
    for number, adapters in enumerate((POLITE, RUDE, POLITE)):
        bert.submit(EmbedTexts(number, TEXTS[:2], adapters=adapters))
    assert {said.request for said in bert.step()} == {0, 2}
    assert {said.request for said in bert.step()} == {1}
    assert not bert.busy


def test_no_cell_that_a_score_computed_serves_another_set(fresh: Any) -> None:
    alone = {name: steps.answer(fresh, PROMPT, adapters={name: 1.0}, max_tokens=12)[0] for name in ("polite", "rude")}
    steps.batch_of(fresh).context.clear_all()
    run(fresh, ScoreText(1, PROMPT, adapters=POLITE))
    text, end = steps.answer(fresh, PROMPT, adapters={"rude": 1.0}, max_tokens=12)
    assert (text, end.cached_tokens) == (alone["rude"], 0)
    assert steps.answer(fresh, PROMPT, adapters=POLITE, max_tokens=12)[0] == alone["polite"]


def test_one_who_pauses_goes_on_with_them(fresh: Any) -> None:
    orders: list[Any] = [
        ScoreText(9, PROMPT * 2, window=WINDOW, adapters=RUDE, priority=0),
        EmbedTexts(9, TEXTS * 3, adapters=RUDE, priority=0),
    ]
    for order in orders:
        alone = end_of(run(fresh, order), 9)
        steps.batch_of(fresh).context.clear_all()
        fresh.submit(order)
        batch = steps.batch_of(fresh)
        work = batch._open[9]
        while not work._before:  # until a text is done
            fresh.step()
        for number in range(1, SLOTS + 1):
            steps.submit(fresh, number, f"{number} {PROMPT}", adapters=POLITE, max_tokens=4, priority=2)
        assert work in batch._line
        after = end_of(run(fresh), 9)
        if isinstance(order, ScoreText):
            assert after.logprob == pytest.approx(alone.logprob, rel=1e-5)
        else:
            assert off(np.array(after.vectors), np.array(alone.vectors)) < 1e-5


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_parked_model_keeps_them(folder: Path, kind: str) -> None:
    engine = opened(folder, kind)
    before = vectors_of(engine, POLITE)
    engine.park()
    engine.resume(ResumeModel(512 * SLOTS, SLOTS, batch=128, outputs=8))
    assert off(vectors_of(engine, POLITE), before) < 1e-6
    assert off(vectors_of(engine, NONE), before) > 1e-4
    engine.close()


# --- what is refused --------------------------------------------------------------------------------


def test_an_adapter_that_is_not_there_is_named(fresh: Any, bert: Any) -> None:
    asked = {"polite": 1.0, "kind": 0.0}
    for engine, order in (
        (fresh, ScoreText(1, PROMPT, adapters=asked)),
        (fresh, EmbedTexts(1, TEXTS, adapters=asked)),
        (bert, EmbedTexts(1, TEXTS, adapters=asked)),
    ):
        with pytest.raises(EngineError, match="cannot use the adapter kind") as error:
            engine.submit(order)
        assert (error.value.code, engine.busy) == ("invalid_request", False)
