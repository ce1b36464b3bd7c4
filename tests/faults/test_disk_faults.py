"""Disks that are full, read-only or hold nonsense: a typed answer, nothing broken, and service goes on."""

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from h2qctl import H2qError
from tests.harness import config_text, running, script, started

root = pytest.mark.skipif(os.getuid() != 0, reason="needs root: it mounts a small file system")

_PAGE = 4096


def mount(*arguments: str) -> bool:
    program = ["/bin/umount", "-l", *arguments[1:]] if arguments[0] == "--unmount" else ["/bin/mount", *arguments]
    return subprocess.run(program, check=False, capture_output=True).returncode == 0


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[None]:
    """A file system of 1 MiB at `folder`; without the right to mount, the test is skipped."""
    folder.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=1m", "h2qd-test", str(folder)):
        pytest.skip("mount is not permitted here")
    try:
        yield
    finally:
        while mount("--unmount", str(folder)):
            pass


def fill(folder: Path) -> None:
    filler = os.open(folder / "filler", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while os.write(filler, bytes(_PAGE)):
            pass
    os.close(filler)


def make_read_only(folder: Path) -> None:
    """As the kernel does with a disk that fails; a second mount on top, for files that are open for writing."""
    assert mount("--bind", str(folder), str(folder))
    assert mount("-o", "remount,bind,ro", str(folder))


@root
@pytest.mark.root
@pytest.mark.parametrize("spoil", [fill, make_read_only])
def test_a_state_folder_that_cannot_be_written_costs_registrations_only(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    state = tmp_path / "state"
    with mounted(state), running(tmp_path, {"a": {}, "b": {}}) as daemon:
        client = daemon.client()
        client.load("a")
        spoil(state)
        with pytest.raises(H2qError) as raised:
            client.import_model(script(tmp_path, "new"), "new")
        assert raised.value.code == "state_not_written"
        assert [row.name for row in client.models().models] == ["a", "b"]
        assert client.switch("b").changed
        assert client.infer("x").finish == "stop"
        assert daemon.log("state.not_written")
        before = {path.name: path.read_bytes() for path in (state / "models").iterdir()}
        assert set(before) == {"a.json", "b.json"}
        assert daemon.stop() == 0
        if spoil is make_read_only:
            mount("--unmount", str(state))
        (state / "filler").unlink(missing_ok=True)
        with started(tmp_path, daemon.config) as again:
            assert [row.name for row in again.client().models().models] == ["a", "b"]
            assert {path.name: path.read_bytes() for path in (state / "models").iterdir()} == before


@root
@pytest.mark.root
def test_a_daemon_starts_on_a_full_disk(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with mounted(state):
        with running(tmp_path, {"a": {}}) as daemon:
            daemon.client().load("a")
        fill(state)
        with started(tmp_path, daemon.config) as daemon:
            assert daemon.client().infer("x", "a").finish == "stop"


@root
@pytest.mark.root
def test_a_daemon_that_cannot_lock_its_folder_says_which(tmp_path: Path) -> None:
    state = tmp_path / "state"
    config = tmp_path / "h2qd.yaml"
    config.write_text(config_text({}))
    with mounted(state):
        make_read_only(state)
        with pytest.raises(AssertionError, match="cannot use the state folder"), started(tmp_path, config):
            pass


@root
@pytest.mark.root
def test_a_removal_that_cannot_be_written_is_not_called_done(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with mounted(state), running(tmp_path) as daemon:
        client = daemon.client()
        client.import_model(script(tmp_path, "new"), "new")
        make_read_only(state)
        with pytest.raises(H2qError) as raised:
            client.remove("new")
        assert raised.value.code == "state_not_written"


NONSENSE = [b"", b"{", b"\0" * 4096, b"[" * 100_000, b'{"name": "../../etc/passwd"}', b"x" * 2_000_000, b'"\xff\xfe"']


def test_manifests_that_are_nonsense_are_set_aside(tmp_path: Path) -> None:
    models = tmp_path / "state" / "models"
    with running(tmp_path, {"a": {}}) as daemon:
        daemon.client().import_model(script(tmp_path, "b"), "b")
    (models / "b.json").write_bytes(b"nonsense")
    for number, nonsense in enumerate(NONSENSE):
        (models / f"n{number}.json").write_bytes(nonsense)
    for nonsense in NONSENSE[:4]:
        (tmp_path / "state" / "memory.json").write_bytes(nonsense)
        with started(tmp_path, daemon.config) as daemon:
            client = daemon.client()
            assert [row.name for row in client.models().models] == ["a"]
            assert client.infer("x", "a").finish == "stop"
    assert [(models / f"n{number}.broken").read_bytes() for number in range(len(NONSENSE))] == NONSENSE
    assert (models / "b.broken").exists()
    assert len(daemon.log("registry.broken")) == len(NONSENSE) + 1
    with started(tmp_path, daemon.config) as daemon:
        assert daemon.client().import_model(tmp_path / "b.json", "b").changed


def test_a_manifest_under_another_name_is_set_aside(tmp_path: Path) -> None:
    models = tmp_path / "state" / "models"
    with running(tmp_path, {"a": {}}) as daemon:
        pass
    manifest = json.loads((models / "a.json").read_bytes())
    (models / "other.json").write_text(json.dumps(manifest))
    with started(tmp_path, daemon.config) as daemon:
        assert [row.name for row in daemon.client().models().models] == ["a"]
        assert (models / "other.broken").exists()


def test_a_file_that_changed_since_it_was_checked_is_not_loaded_unseen(tmp_path: Path) -> None:
    with running(tmp_path, {"a": {}}) as daemon:
        client = daemon.client()
        client.load("a")
        client.unload("a")
        (tmp_path / "a.json").unlink()
        with pytest.raises(H2qError) as raised:
            client.load("a")
        assert raised.value.code == "file_not_found"
