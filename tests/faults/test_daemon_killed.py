"""The daemon killed without warning: nothing of its tree outlives it, and the next one finds all in order."""

import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from h2qd.wire.messages import Progress
from tests.harness import (
    ROOT,
    DaemonProcess,
    alive,
    await_true,
    background,
    config_text,
    launch,
    running,
    script,
    started,
)

GONE_S_MAX = 1.0

MODELS: dict[str, dict[str, object]] = {
    "quick": {},
    "long": {"tokens": 5000, "token_ms": 2},
    "slow": {"load_ms": 60_000},
    "deaf": {"ignore_stop": True, "ignore_sigterm": True},
}


_NUMBERS = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "vocab_size",
)


def idle(daemon: DaemonProcess) -> None:
    daemon.client().load("quick")


def deaf(daemon: DaemonProcess) -> None:
    daemon.client().load("deaf")


def generating(daemon: DaemonProcess) -> None:
    background(lambda: daemon.client().infer("x", "long", max_tokens=5000))
    client = daemon.client()
    await_true(lambda: client.status().running == 1, "it generates")


def loading(daemon: DaemonProcess) -> None:
    background(lambda: daemon.client().load("slow"))
    client = daemon.client()
    await_true(lambda: any(row.pid for row in client.ps().models), "a worker loads")


def importing(daemon: DaemonProcess) -> None:
    file = daemon.folder / "large.gguf"
    pairs = _text("general.architecture") + struct.pack("<I", 8) + _text("llama")
    for key in _NUMBERS:
        pairs += _text(f"llama.{key}") + struct.pack("<II", 4, 32)
    tensor = _text("t") + struct.pack("<IQIQ", 1, 32, 0, 0)
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1 + len(_NUMBERS)) + pairs + tensor)
    os.truncate(file, 64 * 2**30)  # sparse: it holds nothing, and takes a minute to read
    told: list[Progress] = []
    background(lambda: daemon.client().import_model(file, "large", on_progress=told.append))
    await_true(lambda: any(progress.phase == "inspecting" for progress in told), "a worker reads the file")


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


@pytest.mark.parametrize("busy_with", [idle, deaf, generating, loading, importing])
def test_nothing_outlives_a_killed_daemon(tmp_path: Path, busy_with: Callable[[DaemonProcess], None]) -> None:
    with running(tmp_path, MODELS, "worker: {stop_grace: 200ms}") as daemon:
        busy_with(daemon)
        family = daemon.tree()
        assert len(family) == 3
        daemon.kill()
        await_true(lambda: not any(alive(process.pid) for process in family), "all are gone", GONE_S_MAX)
    with started(tmp_path, daemon.config) as again:
        client = again.client()
        assert {row.name for row in client.models().models} == set(MODELS)
        assert client.infer("x", "quick").finish == "stop"


def test_an_import_in_progress_is_answered_when_the_daemon_stops(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        importing(daemon)
        watch = daemon.client()
        (row,) = watch.ps().requests
        assert row.op == "model.import"
        assert daemon.stop() == 0
        (ended,) = [line for line in daemon.log("request.ended") if line["op"] == "model.import"]
        assert ended["outcome"] == "shutting_down"


def test_a_cancelled_import_takes_its_worker_along(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        importing(daemon)
        client = daemon.client()
        zygote = psutil.Process(daemon.zygote_pid())
        client.cancel(client.ps().requests[0].request)
        await_true(lambda: not zygote.children(), "the worker is gone")
        assert client.ps().requests == []
        assert client.models().models == []


def test_a_daemon_killed_by_the_kernel_leaves_a_state_that_is_whole(tmp_path: Path) -> None:
    with running(tmp_path, {"a": {}}) as daemon:
        client = daemon.client()
        for round_number in range(20):
            client.load("a") if round_number % 2 == 0 else client.unload("a")
        os.kill(daemon.process.pid, signal.SIGKILL)
        daemon.process.wait()
    daemon.config.write_text(config_text({"a": tmp_path / "a.json"}))
    with started(tmp_path, daemon.config) as again:
        assert not again.log("registry.broken")


_PLANTED = """
from h2qd.runtime import supervisor
step = supervisor.step
def broken(state, event):
    if type(event).__name__ == "WorkerExited":
        raise RuntimeError("planted")
    return step(state, event)
supervisor.step = broken
"""


def test_a_defect_in_the_drain_does_not_keep_the_daemon(tmp_path: Path) -> None:
    """A core that never hears of its worker's end would wait for it for ever."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_PLANTED)
    path = os.pathsep.join([str(tmp_path / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    times = (
        "worker: {stop_grace: 200ms, cancel_grace: 100ms}\nshutdown: {drain: 100ms}\nsessions: {save_timeout: 100ms}"
    )
    config = tmp_path / "h2qd.yaml"
    config.write_text(config_text({"quick": script(tmp_path, "quick")}, times))
    daemon = launch(tmp_path, config, {"PYTHONPATH": path})
    try:
        with daemon.client() as client:
            await_true(lambda: client.status().phase == "serving", "the daemon serves")
            client.load("quick")
            family = daemon.tree()
        assert daemon.stop() == 0
        assert daemon.log("core.defect")
        assert daemon.log("daemon.stop_overdue")
        await_true(lambda: not any(alive(process.pid) for process in family), "all are gone", GONE_S_MAX)
    finally:
        daemon.kill()
        daemon.notify.close()
