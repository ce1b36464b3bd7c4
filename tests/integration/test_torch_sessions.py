"""What a slot keeps for the next request, and sessions, on model folders: the same text as without, sooner."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from h2qd.worker.engine import Beat, EngineError

pytest.importorskip("torch")

from h2qd.safetensors.families import FAMILIES
from h2qd.sessions import record as record_module
from h2qd.sessions.folder import Folder
from h2qd.wire.workers import (
    EmbedTexts,
    Generate,
    Generated,
    GenerationFailed,
    LoadModel,
    ResumeModel,
    Sampler,
    ScoreText,
    Text,
    TokenizeText,
)
from h2qd.worker.torch.cache import Cells
from h2qd.worker.torch.engine import TorchEngine
from h2qd.worker.torch.libraries import lean, torch, transformers
from h2qd.worker.torch.sessions import Slot
from tests import folders
from tests.torch_steps import run, text_of

KEY = "1000-trip"
SHA, OTHER = "ab" * 32, "cd" * 32
SHARE = 512
GREEDY = Sampler(temperature=0)
DRAWN = Sampler(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=7)
STORY = "Once upon a time there was a village by the sea, and in it lived "
LONG = "".join(f"{number} sheep, " for number in range(30))[:300]
THEN = " And so the old man said"
LETTER = "q"

WINDOW = {"sliding_window": 16}
SIZES: dict[str, dict[str, Any]] = {
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, **WINDOW},
    "gemma3_text": {"head_dim": 16, "num_hidden_layers": 7, **WINDOW},
    "mistral": WINDOW,
    "phi3": WINDOW,
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1, **WINDOW},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 1, "head_dim": 16, **WINDOW},
    "starcoder2": WINDOW,
}
KINDS = [kind for kind, family in FAMILIES.items() if family.generates]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "sessions"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.tiny(tmp_path_factory.mktemp("llama"))


@contextlib.contextmanager
def loaded(path: Path, disk: Path, share: int = SHARE, beat: Beat | None = None, **options: Any) -> Iterator[Any]:
    engine = TorchEngine(beat or Beat())
    defaults: dict[str, Any] = {"sessions": str(disk), "sessions_bytes": 10**9, "sha256": SHA, "slots": 1}
    merged = defaults | options
    engine.load(LoadModel("torch", str(path), share * merged["slots"], threads=1, **merged), lambda _: None)
    try:
        yield engine
    finally:
        engine.close()


def order(request: int, prompt: str, **fields: Any) -> Generate:
    wanted = {"max_tokens": 16, "sampler": GREEDY, "ignore_eos": True, "logprobs": 0, **fields}
    return Generate(request=request, prompt=prompt, **wanted)


def answer(engine: TorchEngine, prompt: str, **fields: Any) -> list[Any]:
    return run(engine, order(1, prompt, **fields))[1]


def turn(engine: TorchEngine, prompt: str, **fields: Any) -> list[Any]:
    return answer(engine, prompt, **({"session": KEY} | fields))


def first_turn(engine: TorchEngine, count: int = 24) -> str:
    """A turn whose answer is one letter again and again, and so the same tokens when it is read; the text by then."""
    heard = turn(engine, STORY, sampler=Sampler(temperature=0, logit_bias=letter(engine)), max_tokens=count)
    assert text_of(heard) == LETTER * count
    return STORY + LETTER * count


def letter(engine: TorchEngine) -> dict[int, float]:
    (tokenized,) = run(engine, TokenizeText(9, LETTER))[9]
    return {tokenized.tokens[0]: 1000.0}


def end_of(messages: list[Any]) -> Generated:
    end = messages[-1]
    assert isinstance(end, Generated)
    return end


def cached(messages: list[Any]) -> int:
    return end_of(messages).cached_tokens


def tokens_of(messages: list[Any]) -> list[int]:
    return [one.token for message in messages if isinstance(message, Text) for one in message.logprobs]


def chances_of(messages: list[Any]) -> list[float]:
    return [one.logprob for message in messages if isinstance(message, Text) for one in message.logprobs]


def assert_same(ours: list[Any], theirs: list[Any]) -> None:
    """The same but for rounding."""
    assert tokens_of(ours) == tokens_of(theirs)
    assert chances_of(ours) == pytest.approx(chances_of(theirs), abs=1e-3)


def saved(engine: TorchEngine) -> int:
    found = engine.save()
    assert found.failed == 0, found.why
    assert engine.unsaved == 0, "it is not newer than the disk any more"
    return found.saved


def slots_of(engine: TorchEngine) -> list[Slot]:
    assert engine._batch is not None
    return engine._batch._slots


# --- the same text ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_goes_on_as_if_it_had_computed_all_again(tmp_path: Path, disk: Path, kind: str) -> None:
    path = folders.tiny(tmp_path / "model", kind, **SIZES.get(kind, {}))
    with loaded(path, disk) as engine:
        following = first_turn(engine) + THEN
        assert saved(engine) == 1
        stayed = turn(engine, following)
    with loaded(path, disk) as engine:
        returned = turn(engine, following)
    with loaded(path, disk) as engine:
        anew = answer(engine, following)
    assert cached(stayed) == cached(returned) == 1 + len(STORY) + 23
    assert cached(anew) == 0
    assert (tokens_of(returned), chances_of(returned)) == (tokens_of(stayed), chances_of(stayed))
    assert_same(stayed, anew)


@pytest.mark.parametrize(
    ("kind", "sizes", "kept"),
    [
        ("llama", {}, 256),
        ("mistral", {"sliding_window": 400}, 256),
        ("mistral", WINDOW, 0),
        ("gemma3_text", {"head_dim": 16, "num_hidden_layers": 7, **WINDOW}, 0),
    ],
)
@pytest.mark.parametrize("sampler", [GREEDY, DRAWN])
def test_a_lone_answer_is_to_the_bit_what_it_is_without_what_ran_before(
    tmp_path: Path, disk: Path, kind: str, sizes: dict[str, Any], kept: int, sampler: Sampler
) -> None:
    path = folders.tiny(tmp_path / "model", kind, **sizes)
    with loaded(path, disk) as engine:
        expected = answer(engine, LONG + THEN, sampler=sampler)
    with loaded(path, disk) as engine:
        answer(engine, LONG + " Then came the rain", max_tokens=40)
        found = answer(engine, LONG + THEN, sampler=sampler)
    assert cached(expected) == 0
    assert cached(found) == kept
    assert (tokens_of(found), chances_of(found)) == (tokens_of(expected), chances_of(expected))


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gemma2", "starcoder2"])
def test_a_beginning_is_shared_in_company_too(tmp_path: Path, disk: Path, kind: str) -> None:
    path = folders.tiny(tmp_path / "model", kind, **(SIZES.get(kind, {}) | {"sliding_window": 200}))
    orders = [order(number, STORY * 2 + f"{number}{THEN}") for number in range(3)]
    with loaded(path, disk, slots=3) as engine:
        apart: dict[int, list[Any]] = {}
        for one in orders:
            apart |= run(engine, one)
            for slot in slots_of(engine):
                slot.cells.clear()
    with loaded(path, disk, slots=3) as engine:
        engine.submit(orders[0])
        heard: dict[int, list[Any]] = {one.request: [] for one in orders}
        while not tokens_of(heard[0]):
            heard[0] += engine.step()
        for one in orders[1:]:
            engine.submit(one)
        while engine.busy:
            for message in engine.step():
                heard[message.request].append(message)
    assert [cached(heard[number]) for number in range(3)] == [0, 1 + 2 * len(STORY), 1 + 2 * len(STORY)]
    for number in range(3):
        assert_same(heard[number], apart[number])


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "mistral"])
def test_conversations_go_on_side_by_side_and_beside_others(tmp_path: Path, disk: Path, kind: str) -> None:
    path = folders.tiny(tmp_path / "model", kind, **SIZES.get(kind, {}))
    keys = {1: "1-one", 2: "2-two"}
    with loaded(path, disk, slots=3) as engine:
        following = first_turn(engine) + THEN
        alone = turn(engine, following)
        engine.forget(KEY)
        for slot in slots_of(engine):
            slot.cells.clear()
        for key in keys.values():
            sampler = Sampler(temperature=0, logit_bias=letter(engine))
            turn(engine, STORY, session=key, sampler=sampler, max_tokens=24)
        assert engine.unsaved == 2
        orders = [order(request, following, session=key) for request, key in keys.items()]
        heard = run(engine, *orders, order(3, "something else", max_tokens=40))
        for request in keys:
            assert cached(heard[request]) == 1 + len(STORY) + 23
            assert_same(heard[request], alone)
        assert saved(engine) == 2


def test_what_is_at_work_is_not_saved(llama: Path, disk: Path) -> None:
    with loaded(llama, disk) as engine:
        following = first_turn(engine) + THEN
        assert engine.unsaved == 1
        engine.submit(order(1, following, session=KEY))
        assert engine.unsaved == 0
        while engine.busy:
            engine.step()
        assert saved(engine) == 1
        assert saved(engine) == 0


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text"])
def test_an_answer_can_be_asked_for_again(tmp_path: Path, disk: Path, kind: str) -> None:
    path = folders.tiny(tmp_path / "model", kind, **SIZES.get(kind, {}))
    with loaded(path, disk) as engine:
        first = turn(engine, STORY, max_tokens=12)
        again = turn(engine, STORY, max_tokens=12)
        assert cached(again) == len(
            STORY
        )  # all of the prompt but its last token: windows go back as far as their length
        assert_same(again, first)


def test_what_cannot_go_back_goes_on_after_all_or_begins_anew() -> None:
    with lean():
        config = transformers.AutoConfig.for_model(
            "lfm2", **folders.SIZES, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False
        )
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    cells = Cells(config, 64, 16)
    tokens = [5 + number % 40 for number in range(40)]

    def compute(some: list[int]) -> Any:
        with torch.inference_mode():
            logits = model(torch.tensor([some]), past_key_values=cells.cache, use_cache=True).logits[0, -1]
        cells.computed(some, alone=True)
        return logits

    compute(tokens[:30])
    assert cells.reusable(tokens, exact=False) == 30
    cells.cut(30)
    found = compute(tokens[30:])
    assert cells.reusable([*tokens[:35], 3, 4], exact=False) == 0
    assert not cells.copies
    cells.interrupted()
    assert cells.tokens == []
    assert torch.allclose(found, compute(tokens), atol=1e-4)


def test_positions_scaled_by_what_was_before_leave_nothing_behind(tmp_path: Path, disk: Path) -> None:
    scaled = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    path = folders.tiny(tmp_path / "model", rope_parameters=scaled, max_position_embeddings=64)
    with loaded(path, disk) as engine:
        expected = turn(engine, STORY[:40])
        assert engine.unsaved == 0
        again = turn(engine, STORY[:40])
        assert cached(again) == 0
        assert chances_of(again) == chances_of(expected)


class _Cancelling(Beat):
    """Cancels request 1 at a tick that comes from within a layer."""

    engine: TorchEngine | None = None
    at = 0

    def tick(self) -> None:
        super().tick()
        if self.engine is not None and self.count == self.at:
            self.engine.cancel(1)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_turn_cut_off_inside_a_pass_leaves_what_was_whole(tmp_path: Path, disk: Path, kind: str) -> None:
    path = folders.tiny(tmp_path / "model", kind, **SIZES.get(kind, {}))
    beat = _Cancelling()
    with loaded(path, disk, beat=beat) as engine:
        following = first_turn(engine) + THEN
        expected = answer(engine, following, session="1-other")
        beat.engine = engine
        first_turn(engine)
        engine.submit(order(1, following, session=KEY))
        beat.at = beat.count + 3  # the step's own tick, the first layer's, the second's
        (end,) = engine.step()
        assert (end.finish, end.cached_tokens) == ("cancelled", 1 + len(STORY) + 23)
        again = turn(engine, following)
        assert cached(again) == end.cached_tokens
        assert_same(again, expected)


# --- whose cells ------------------------------------------------------------------------------------


def test_no_slot_holds_more_than_was_planned(llama: Path, disk: Path) -> None:
    with loaded(llama, disk, share=400, slots=2) as engine:
        for number in range(3):
            answer(engine, f"{number}" + LONG)
            run(engine, ScoreText(1, LONG), EmbedTexts(2, [LONG, STORY]))
        assert len(slots_of(engine)) == 2
        for slot in slots_of(engine):
            assert len(slot.cells.tokens) <= 400
            assert all(buffer.shape[2] <= 400 for layer in slot.cells.layers for buffer in layer.kept)
        engine.park()
        engine.resume(ResumeModel(400))
        assert [slot.cells.tokens for slot in slots_of(engine)] == [[]]


def test_a_session_whose_place_is_taken_goes_on_from_disk(llama: Path, disk: Path) -> None:
    with loaded(llama, disk) as engine:
        following = first_turn(engine) + THEN
        assert Folder(disk).rows() == [], "it is idle in its slot, nothing has to be written"
        run(engine, ScoreText(1, "something else that takes the only place"))
        (row,) = Folder(disk).rows()
        assert (row.name, row.uid, row.tokens) == ("trip", 1000, 1 + len(STORY) + 23)
        assert cached(turn(engine, following)) == row.tokens


def test_others_take_the_place_that_no_session_holds(llama: Path, disk: Path) -> None:
    with loaded(llama, disk, slots=2) as engine:
        first_turn(engine)
        for number in range(3):
            answer(engine, f"{number} is another request, and goes elsewhere", max_tokens=2)
        assert Folder(disk).rows() == []
        assert saved(engine) == 1


def test_two_requests_of_one_session_are_both_answered(llama: Path, disk: Path) -> None:
    with loaded(llama, disk, slots=2) as engine:
        heard = run(engine, *(order(number, STORY + str(number), session=KEY) for number in (1, 2)))
        assert {end_of(messages).finish for messages in heard.values()} == {"length"}
        assert saved(engine) == 1


def test_a_turn_that_pauses_goes_on_from_what_it_had(llama: Path, disk: Path) -> None:
    with loaded(llama, disk) as engine:
        low = order(1, STORY, session=KEY, priority=0, sampler=DRAWN)
        expected = run(engine, msgspec.structs.replace(low, session="1-other"))[1]
        heard: dict[int, list[Any]] = {1: [], 2: []}
        engine.submit(low)
        while len(tokens_of(heard[1])) < 5:
            heard[1] += engine.step()
        engine.submit(order(2, "quick", priority=2))
        assert len(Folder(disk).rows()) == 2
        while engine.busy:
            for message in engine.step():
                heard[message.request].append(message)
        assert_same(heard[1], expected)
        assert cached(heard[1]) == 0, "what it computed itself was not there before"


@pytest.mark.parametrize("parked", [False, True])
def test_what_is_forgotten_is_gone(llama: Path, disk: Path, *, parked: bool) -> None:
    with loaded(llama, disk) as engine:
        first_turn(engine)
        saved(engine)
        if parked:
            engine.park()
        for key in (KEY, "1-unknown", "no key at all"):
            engine.forget(key)
        assert Folder(disk).rows() == []
        assert engine.unsaved == 0


def test_a_session_forgotten_while_it_runs_is_not_kept(llama: Path, disk: Path) -> None:
    with loaded(llama, disk) as engine:
        engine.submit(order(1, STORY, session=KEY))
        engine.step()
        engine.forget(KEY)
        while engine.busy:
            engine.step()
        assert slots_of(engine)[0].cells.tokens
        assert engine.unsaved == 0


def test_a_key_is_checked(llama: Path, disk: Path) -> None:
    with loaded(llama, disk) as engine:
        for key in ("a", "../a", "1-../a"):
            with pytest.raises(EngineError) as caught:
                engine.submit(order(1, STORY, session=key))
            assert caught.value.code == "invalid_request"


# --- files that do not fit --------------------------------------------------------------------------


def kept_turn(path: Path, disk: Path, **options: Any) -> str:
    """A first turn that is saved; the text by then."""
    with loaded(path, disk, **options) as engine:
        text = first_turn(engine)
        assert saved(engine) == 1
    return text


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": OTHER},
        {"sha256": ""},
        {"sessions_bytes": 0},
        {"quantize": "bfloat16"},
        {"quantize": "int8"},
        {"batch": 64},
        {"share": 80},
    ],
)
def test_another_setting_computes_anew(llama: Path, disk: Path, change: dict[str, Any]) -> None:
    kept_turn(llama, disk)
    with loaded(llama, disk, **change) as engine:
        expected = answer(engine, STORY[:50], max_tokens=8)
        slots_of(engine)[0].cells.clear()
        found = turn(engine, STORY[:50], max_tokens=8)
        assert cached(found) == 0
        assert chances_of(found) == chances_of(expected)


def test_other_libraries_compute_anew(llama: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    following = kept_turn(llama, disk) + THEN
    monkeypatch.setattr(transformers, "__version__", "0.1")
    with loaded(llama, disk) as engine:
        assert cached(turn(engine, following)) == 0


def damage(file: Path, at: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(len(content) * at)] ^= 1
    file.write_bytes(content)


def shorten(file: Path, to: float) -> None:
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * to)])


@pytest.mark.parametrize("spoil", [damage, shorten])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_a_damaged_file_costs_a_prefill(llama: Path, disk: Path, spoil: Any, part: float) -> None:
    following = kept_turn(llama, disk) + THEN
    (file,) = disk.iterdir()
    spoil(file, part)
    with loaded(llama, disk) as engine:
        found = turn(engine, following)
        assert cached(found) == 0
        assert saved(engine) == 1
    with loaded(llama, disk) as engine:
        assert cached(turn(engine, following + THEN)) > 0


def rewritten(disk: Path, data: bytes, **changed: Any) -> None:
    """The one file there with other data, and a checksum and a record that are right for these."""
    (file,) = disk.iterdir()
    with file.open("r+b") as opened:
        known = record_module.read(opened.fileno())
        opened.truncate(0)
        opened.seek(0)
        opened.write(data)
        opened.flush()
        record_module.finish(opened.fileno(), msgspec.structs.replace(known, **{"data_bytes": len(data), **changed}))


def data_of(disk: Path) -> bytes:
    (file,) = disk.iterdir()
    with file.open("rb") as opened:
        return file.read_bytes()[: record_module.read(opened.fileno()).data_bytes]


@pytest.mark.parametrize(
    "forge",
    [
        lambda data: (data[:-4], {}),
        lambda data: (data + bytes(4), {}),
        lambda data: (data[:8], {}),
        lambda data: (data, {"tokens": 10, "whole": 0}),
        lambda data: (data, {"tokens": 2**53, "whole": 0}),
        lambda data: (data, {"tokens": 0, "whole": 0}),
        lambda data: (b"h2q-kv-2" + data[8:], {}),
        lambda data: (data[:24] + bytes([data[24] + 1]) + data[25:], {}),
        lambda data: (data, {"adapters": "polite"}),
        lambda data: (data, {"kv_type": "float16"}),
    ],
)
def test_a_file_that_says_something_else_is_not_read(llama: Path, disk: Path, forge: Any) -> None:
    following = kept_turn(llama, disk) + THEN
    data, changed = forge(data_of(disk))
    rewritten(disk, data, **changed)
    with loaded(llama, disk) as engine:
        found = turn(engine, following)
        assert cached(found) == 0
        assert end_of(found).finish == "length"


def test_numbers_that_are_none_end_a_turn_and_are_not_kept(llama: Path, disk: Path) -> None:
    following = kept_turn(llama, disk) + THEN
    data = data_of(disk)
    half = len(data) // 2
    rewritten(disk, data[:half] + b"\xff" * (len(data) - half))
    with loaded(llama, disk) as engine:
        failed = turn(engine, following)[-1]
        assert isinstance(failed, GenerationFailed)
        assert failed.code == "generation_failed"
        assert Folder(disk).rows() == []
        assert end_of(turn(engine, following)).finish == "length"


# --- disks ------------------------------------------------------------------------------------------


def test_the_quota_holds(llama: Path, disk: Path) -> None:
    kept_turn(llama, disk)
    size = Folder(disk).total_bytes()
    with loaded(llama, disk, sessions_bytes=2 * size + 100) as engine:
        for name in "bcd":
            answer(engine, name + STORY[1:], session=f"1-{name}", max_tokens=24)
        saved(engine)
    assert {row.name for row in Folder(disk).rows()} == {"c", "d"}
    with loaded(llama, disk, sessions_bytes=size // 2) as engine:
        turn(engine, STORY)
        found = engine.save()
        assert (found.saved, found.failed) == (0, 1)
        assert "may take" in found.why
        assert engine.unsaved == 0, "it is forgotten"


def test_a_folder_that_cannot_be_used_is_none(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with loaded(llama, tmp_path / "file") as engine:
        following = first_turn(engine) + THEN
        assert cached(turn(engine, following)) > 0
        assert engine.unsaved == 0
