"""The scripted engine, in this process; its crashes and hangs are met in the integration tests."""

import json
import os
import time
from pathlib import Path

import pytest

from h2qd.wire.workers import (
    Generate,
    Generated,
    GenerationFailed,
    LoadModel,
    Prefilling,
    ResumeModel,
    Sampler,
    Text,
    Turn,
)
from h2qd.worker.engine import Beat, EngineError, Said
from h2qd.worker.fake import SCRIPT_BYTES_MAX, FakeEngine
from tests.unit.worker.zygote_peer import ask, write_script


def loaded(folder: Path, **script: object) -> FakeEngine:
    engine = FakeEngine(Beat())
    engine.load(LoadModel("fake", str(write_script(folder, **script)), 64), lambda _: None)
    return engine


def everything(engine: FakeEngine) -> list[Said]:
    said: list[Said] = []
    while engine.busy:
        said += engine.step()
    return said


def text(said: list[Said]) -> str:
    return "".join(message.text for message in said if isinstance(message, Text))


def end(said: list[Said]) -> Generated:
    assert isinstance(said[-1], Generated)
    return said[-1]


def test_load_tells_its_progress_and_beats(tmp_path: Path) -> None:
    beat = Beat()
    told: list[float] = []
    engine = FakeEngine(beat)
    done = engine.load(LoadModel("fake", str(write_script(tmp_path)), 77), told.append)
    assert done.ctx == 77
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0.0, 1.0)
    assert beat.count == len(told)


def test_tokens_may_be_listed(tmp_path: Path) -> None:
    engine = loaded(tmp_path, tokens=["Hello", ", ", "wörld"])
    engine.submit(ask())
    said = everything(engine)
    assert text(said) == "Hello, wörld"
    assert end(said).finish == "stop"


@pytest.mark.parametrize(
    ("tokens", "max_tokens", "ignore_eos", "produced", "finish"),
    [
        (3, 10, False, 3, "stop"),
        (3, 3, False, 3, "length"),
        (3, 2, False, 2, "length"),
        (3, 0, False, 0, "length"),
        (0, 5, False, 0, "stop"),
        (0, 5, True, 0, "stop"),
        (3, 7, True, 7, "length"),
    ],
)
def test_where_an_answer_ends(
    tmp_path: Path, tokens: int, max_tokens: int, *, ignore_eos: bool, produced: int, finish: str
) -> None:
    engine = loaded(tmp_path, tokens=tokens)
    engine.submit(Generate(1, max_tokens, Sampler(), prompt="p", ignore_eos=ignore_eos))
    generated = end(everything(engine))
    assert (generated.completion_tokens, generated.finish) == (produced, finish)
    assert generated.prefill_ms >= 0
    assert generated.decode_ms >= 0


def test_conversations_count_all_turns(tmp_path: Path) -> None:
    engine = loaded(tmp_path)
    engine.submit(Generate(1, 1, Sampler(), turns=[Turn("system", "be brief"), Turn("user", "why is that")]))
    said = everything(engine)
    assert end(said).prompt_tokens == 5
    prefills = [message for message in said if isinstance(message, Prefilling)]
    assert prefills[-1] == Prefilling(1, 5, 5)
    assert len(prefills) == 10


def test_what_goes_beyond_text_is_refused_by_name(tmp_path: Path) -> None:
    engine = loaded(tmp_path)
    with pytest.raises(EngineError, match="cannot use think here") as caught:
        engine.submit(Generate(1, 1, Sampler(), turns=[Turn("user", "hi")], think="low"))
    assert caught.value.code == "unsupported"
    assert not engine.busy


def test_prompts_over_the_context_are_refused(tmp_path: Path) -> None:
    engine = loaded(tmp_path, prompt_tokens=65)
    with pytest.raises(EngineError) as caught:
        engine.submit(ask())
    assert caught.value.code == "context_overflow"
    assert not engine.busy


def test_cancel_reaches_those_that_wait(tmp_path: Path) -> None:
    engine = loaded(tmp_path, tokens=2)
    engine.submit(ask(1))
    engine.submit(ask(2))
    engine.cancel(2)
    engine.cancel(3)
    ends = [message for message in everything(engine) if isinstance(message, Generated)]
    assert [(message.request, message.finish) for message in ends] == [(1, "stop"), (2, "cancelled")]


def test_cancel_may_be_ignored(tmp_path: Path) -> None:
    engine = loaded(tmp_path, ignore_cancel=True)
    engine.submit(ask())
    engine.cancel(1)
    assert end(everything(engine)).finish == "stop"


def test_failing_requests_fail_alone(tmp_path: Path) -> None:
    engine = loaded(tmp_path, tokens=4, fail_at_token=1)
    engine.submit(ask(1))
    engine.submit(ask(2))
    failed = [message for message in everything(engine) if isinstance(message, GenerationFailed)]
    assert [message.request for message in failed] == [1, 2]


def test_a_request_may_use_one_slot_s_share_of_the_context(tmp_path: Path) -> None:
    script = write_script(tmp_path, prompt_tokens=17)
    engine = FakeEngine(Beat())
    assert engine.load(LoadModel("fake", str(script), 64, slots=4), lambda _: None).ctx == 16
    with pytest.raises(EngineError) as caught:
        engine.submit(ask())
    assert caught.value.code == "context_overflow"


def test_parking_and_resuming_take_their_time(tmp_path: Path) -> None:
    engine = loaded(tmp_path, tokens=2, park_ms=20, resume_ms=30, context_bytes=1000)
    began = time.monotonic()
    engine.park()
    assert time.monotonic() - began >= 0.02
    with pytest.raises(EngineError) as caught:
        engine.submit(ask())
    assert caught.value.code == "not_loaded"
    assert not engine.busy
    again = engine.resume(ResumeModel(32, slots=2))
    assert again.ctx == 16
    assert again.load_ms >= 30
    engine.submit(ask())
    assert end(everything(engine)).finish == "stop"


def test_a_resumption_may_fail_with_any_code(tmp_path: Path) -> None:
    engine = loaded(tmp_path, resume_fail=["no_fit", "too big by now"])
    engine.park()
    with pytest.raises(EngineError, match="too big by now") as caught:
        engine.resume(ResumeModel(64))
    assert caught.value.code == "no_fit"


def test_close_lets_go(tmp_path: Path) -> None:
    engine = loaded(tmp_path, memory_bytes=1000)
    engine.submit(ask())
    engine.stop()
    engine.close()
    engine.close()
    assert not engine.busy


def test_load_may_fail_with_any_code(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="too big") as caught:
        loaded(tmp_path, load_fail=["no_fit", "too big"])
    assert caught.value.code == "no_fit"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"{}",
        b"[]",
        b'{"h2qd_fake": 2}',
        b'{"h2qd_fake": 1, "lod_ms": 3}',
        b'{"h2qd_fake": 1, "load_ms": -1}',
        b'{"h2qd_fake": 1, "tokens": "many"}',
        b'{"h2qd_fake": 1, "tokens": ["\xff"]}',
        json.dumps({"h2qd_fake": 1, "tokens": ["x" * SCRIPT_BYTES_MAX]}).encode(),
    ],
)
def test_what_is_no_script_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(content)
    with pytest.raises(EngineError) as caught:
        FakeEngine(Beat()).load(LoadModel("fake", str(path), 64), lambda _: None)
    assert caught.value.code == "invalid_model_file"


def test_a_missing_script_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        FakeEngine(Beat()).load(LoadModel("fake", str(tmp_path / "absent"), 64), lambda _: None)
    assert caught.value.code == "file_not_found"


def test_only_tests_may_use_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("H2Q_TEST")
    with pytest.raises(EngineError) as caught:
        loaded(tmp_path)
    assert caught.value.code == "load_failed"
    assert "H2Q_TEST" not in os.environ
