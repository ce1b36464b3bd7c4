"""The contract's own parts: the table of engines, the error, the beat."""

import sys

import pytest

from h2qd.worker.engine import Beat, Engine, EngineError, open_engine
from h2qd.worker.fake import FakeEngine


def test_beat_counts() -> None:
    beat = Beat()
    beat.tick()
    beat.tick()
    assert beat.count == 2


def test_errors_carry_public_codes_only() -> None:
    error = EngineError("load_failed", "why")
    assert (error.code, error.message, str(error)) == ("load_failed", "why", "why")
    with pytest.raises(ValueError, match="surprise"):
        EngineError("surprise", "why")


def test_fake_is_an_engine() -> None:
    engine: Engine = open_engine("fake", Beat())
    assert isinstance(engine, FakeEngine)
    assert not engine.busy
    assert list(engine.step()) == []


@pytest.mark.parametrize("backend", ["", "os", "__class__", "Llama"])
def test_unknown_backends_are_refused(backend: str) -> None:
    with pytest.raises(EngineError, match="no backend") as caught:
        open_engine(backend, Beat())
    assert caught.value.code == "load_failed"


def test_a_missing_library_is_a_failed_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h2qd.worker.llama.engine", None)
    with pytest.raises(EngineError, match="llama-cpp-python is not installed") as caught:
        open_engine("llama", Beat())
    assert caught.value.code == "load_failed"
