"""Checking and hashing a file."""

import os
import socket
from hashlib import sha256
from pathlib import Path

import pytest

from h2qd.worker.engine import Beat, EngineError
from h2qd.worker.inspect import inspect_file
from tests.unit.worker.zygote_peer import write_script


def refusal(path: str) -> str:
    with pytest.raises(EngineError) as caught:
        inspect_file(path, lambda _: None, Beat())
    assert path not in caught.value.message
    return caught.value.code


def test_links_are_followed_to_the_file(tmp_path: Path) -> None:
    script = write_script(tmp_path, facts={"title": "t"})
    link = tmp_path / "link"
    link.symlink_to(script)
    through, direct = (inspect_file(str(path), lambda _: None, Beat()) for path in (link, script))
    assert through == direct
    assert direct.facts.title == "t"
    assert direct.facts.format == "fake"
    assert direct.identity[1:3] == [script.stat().st_ino, script.stat().st_size]


def test_the_whole_file_is_hashed_with_progress(tmp_path: Path) -> None:
    script = write_script(tmp_path)
    script.write_bytes(script.read_bytes().ljust(60_000))
    told: list[float] = []
    beat = Beat()
    inspected = inspect_file(str(script), told.append, beat)
    assert inspected.sha256 == sha256(script.read_bytes()).hexdigest()
    assert told == [1.0]
    assert beat.count == 1


def test_what_cannot_be_opened_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    write_script(tmp_path)
    for path in ("absent", "absent/deeper", "loop", "model.json/below", "n" * 300):
        assert refusal(str(tmp_path / path)) == "file_not_found"
    assert refusal("/nul\x00byte") == "file_not_found"


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert refusal(str(tmp_path / "fifo")) == "invalid_model_file"
    assert refusal(str(tmp_path)) == "invalid_model_file"
    assert refusal("/dev/zero") == "invalid_model_file"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        assert refusal(str(tmp_path / "socket")) == "file_not_found"  # open(2) of a socket fails


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGML" + bytes(100), b"\x00" * 4096, b"{"])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert refusal(str(path)) == "invalid_model_file"


def test_scripts_are_for_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("H2Q_TEST")
    assert refusal(str(write_script(tmp_path))) == "invalid_model_file"


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    script = write_script(tmp_path)

    def touch(_: float) -> None:
        os.utime(script, ns=(1, 1))

    with pytest.raises(EngineError, match="was changed") as caught:
        inspect_file(str(script), touch, Beat())
    assert caught.value.code == "invalid_model_file"


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    refusal(str(tmp_path))
    inspect_file(str(write_script(tmp_path)), lambda _: None, Beat())
    assert len(list(Path("/proc/self/fd").iterdir())) == before
