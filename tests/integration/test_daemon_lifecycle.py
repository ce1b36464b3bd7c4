"""A daemon's life with real processes: it starts once per place, keeps what it must remember, and ends in order."""

import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from h2qctl import Client
from tests.harness import (
    ROOT,
    await_true,
    background,
    code_of,
    config_text,
    daemon_environment,
    launch,
    running,
    script,
    started,
)

SLOW = {"tokens": 2000, "token_ms": 5}


def refused_start(folder: Path, environment: dict[str, str]) -> str:
    """What a daemon that cannot start says."""
    done = subprocess.run(
        [sys.executable, "-m", "h2qd", "--config", str(folder / "h2qd.yaml")],
        cwd=ROOT,
        env={**daemon_environment(folder), **environment},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    return done.stderr


def running_requests(client: Client) -> int:
    return client.status().running


def test_it_is_ready_soon_and_says_so(tmp_path: Path) -> None:
    began = time.monotonic()
    with running(tmp_path, {"a": {}}) as daemon:
        assert time.monotonic() - began < 5
        (ready,) = daemon.log("daemon.ready")
        assert ready["pid"] == daemon.process.pid
        assert ready["s"] < 0.5
        assert daemon.client().status().pid == daemon.process.pid
        assert daemon.client().load("a").changed


def test_one_daemon_for_a_state_folder(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        said = refused_start(tmp_path, {"H2Q_SOCKET": str(tmp_path / "other.sock")})
        assert f"pid {daemon.process.pid}" in said
        assert str(tmp_path / "state") in said
        assert daemon.client().status().phase == "serving"


def test_one_daemon_for_a_socket(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        said = refused_start(tmp_path, {"H2Q_STATE_DIR": str(tmp_path / "other")})
        assert f"cannot listen on {daemon.socket}" in said
        assert daemon.client().status().phase == "serving"


def test_a_dead_daemons_socket_is_taken_over(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        daemon.kill()
        assert daemon.socket.exists()
    with started(tmp_path, tmp_path / "h2qd.yaml") as again:
        assert again.client().status().pid == again.process.pid


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "h2qd.yaml").write_text(config_text({}))
    (tmp_path / "h2qd.sock").write_text("somebody's notes")
    assert "cannot listen" in refused_start(tmp_path, {})
    assert (tmp_path / "h2qd.sock").read_text() == "somebody's notes"


@pytest.mark.parametrize(("mode", "umask"), [(0o660, 0o077), (0o600, 0o000), (0o666, 0o022)])
def test_the_sockets_mode_is_the_configured_one(tmp_path: Path, mode: int, umask: int) -> None:
    config = tmp_path / "h2qd.yaml"
    config.write_text(config_text({}, f'socket: {{mode: "{mode:04o}"}}'))
    daemon = launch(tmp_path, config, umask=umask)
    try:
        assert stat.S_IMODE(daemon.socket.stat().st_mode) == mode
    finally:
        assert daemon.stop() == 0
        daemon.notify.close()


def test_a_term_ends_an_idle_daemon_with_a_resident_model(tmp_path: Path) -> None:
    with running(tmp_path, {"a": {}}) as daemon:
        daemon.client().load("a")
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 2
        assert daemon.log("daemon.stopped")


def test_a_drain_ends_what_runs_and_refuses_what_waits(tmp_path: Path) -> None:
    with running(tmp_path, {"a": {"tokens": 60, "token_ms": 20}, "b": {}}) as daemon:
        client = daemon.client()
        client.load("a")
        runs = background(lambda: daemon.client().infer("x", "a"))
        await_true(lambda: running_requests(client) == 1, "the first runs")
        waits = background(lambda: daemon.client().infer("x", "a"))
        await_true(lambda: client.status().waiting == 1, "the second waits")
        other = background(lambda: daemon.client().load("b"))
        await_true(lambda: client.status().waiting == 2, "the load waits")
        watch = background(lambda: list(daemon.client().events()))
        daemon.process.terminate()
        assert code_of(waits) == "shutting_down"
        assert code_of(other) == "shutting_down"
        assert client.status().phase == "stopping"
        assert code_of(background(lambda: client.infer("x", "a"))) == "shutting_down"
        assert code_of(background(lambda: client.import_model("/dev/null", "n"))) == "shutting_down"
        answer = runs.result(10)
        assert answer.finish == "stop"
        assert answer.usage.completion_tokens == 60
        assert watch.result(10)[-1].event in ("daemon.stopping", "model.moved")
        assert daemon.process.wait(10) == 0


def test_a_drain_has_an_end(tmp_path: Path) -> None:
    with running(tmp_path, {"a": SLOW}, "shutdown: {drain: 300ms}") as daemon:
        client = daemon.client()
        runs = background(lambda: daemon.client().infer("x", "a", max_tokens=2000))
        await_true(lambda: running_requests(client) == 1, "it runs")
        began = time.monotonic()
        daemon.process.terminate()
        assert code_of(runs) == "shutting_down"
        assert daemon.process.wait(10) == 0
        assert 0.3 <= time.monotonic() - began < 3


def test_a_second_term_does_not_wait(tmp_path: Path) -> None:
    with running(tmp_path, {"a": {**SLOW, "ignore_stop": True, "ignore_sigterm": True}}) as daemon:
        client = daemon.client()
        runs = background(lambda: daemon.client().infer("x", "a", max_tokens=2000))
        await_true(lambda: running_requests(client) == 1, "it runs")
        daemon.process.terminate()
        await_true(lambda: client.status().phase == "stopping", "the drain began")
        began = time.monotonic()
        daemon.process.send_signal(signal.SIGINT)
        assert code_of(runs) == "shutting_down"
        assert daemon.process.wait(10) == 0
        assert time.monotonic() - began < 2


def test_a_term_in_the_middle_of_a_load(tmp_path: Path) -> None:
    with running(tmp_path, {"a": {"load_ms": 60_000}}) as daemon:
        loads = background(lambda: daemon.client().load("a"))
        client = daemon.client()
        await_true(lambda: (switch := client.status().switch) is not None and switch.phase == "load", "it loads")
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 2
        assert code_of(loads) == "shutting_down"


def test_what_was_active_is_loaded_again(tmp_path: Path) -> None:
    with running(tmp_path, {"a": {}, "b": {}}) as daemon:
        daemon.client().load("a")
        daemon.client().switch("b")
    with started(tmp_path, daemon.config) as daemon:
        client = daemon.client()
        await_true(lambda: client.status().resident == ["b"], "b is there again")
        assert client.status().active == "b"
        client.unload("b")
    with started(tmp_path, daemon.config) as daemon:
        client = daemon.client()
        assert client.status().active is None
        assert client.infer("x", "a").finish == "stop"
        daemon.config.write_text(daemon.config.read_text() + "residency: {restore: false}\n")
    with started(tmp_path, daemon.config) as daemon:
        assert daemon.client().status().resident == []


def test_models_outlive_the_daemon_and_leave_with_the_configuration(tmp_path: Path) -> None:
    with running(tmp_path, {"named": {}, "dropped": {}}) as daemon:
        file = script(tmp_path, "file")
        assert daemon.client().import_model(file, "imported").changed
        assert not daemon.client().import_model(file, "imported").changed
    daemon.config.write_text(config_text({"named": tmp_path / "named.json"}))
    with started(tmp_path, daemon.config) as daemon:
        client = daemon.client()
        assert [row.name for row in client.models().models] == ["imported", "named"]
        assert client.infer("x", "imported").finish == "stop"
        client.unload("imported")
        client.remove("imported")
    with started(tmp_path, daemon.config) as daemon:
        assert [row.name for row in daemon.client().models().models] == ["named"]


def test_a_model_whose_file_cannot_be_used_is_listed_with_the_reason_until_it_can(tmp_path: Path) -> None:
    config = tmp_path / "h2qd.yaml"
    good = script(tmp_path, "good")
    (tmp_path / "torn.json").write_text("{")
    config.write_text(config_text({"good": good, "bad": tmp_path / "bad.json", "torn": tmp_path / "torn.json"}))
    with started(tmp_path, config) as daemon:
        client = daemon.client()
        rows = {row.name: row for row in client.models().models}
        assert rows["good"].available
        assert not rows["bad"].available
        assert "cannot open the file" in rows["bad"].reason
        assert code_of(background(lambda: client.load("bad"))) == "file_not_found"
        assert code_of(background(lambda: client.load("torn"))) == "invalid_model_file"
        assert client.load("good").changed
        script(tmp_path, "bad")
        await_true(lambda: {row.name for row in client.models().models if row.available} == {"bad", "good"}, "there")
        assert client.load("bad").changed


def test_it_says_where_it_is_to_systemd_and_nothing_listens_on_the_internet(tmp_path: Path) -> None:
    with running(tmp_path, {"a": {}}) as daemon:
        daemon.client().load("a")
        for process in daemon.tree():
            assert not process.net_connections("inet")
        await_true(lambda: b"STATUS=serving: a active" in daemon.notify.recv(4096), "the status line names the model")


def test_the_supervisor_loads_no_engine(tmp_path: Path) -> None:
    with running(tmp_path, {"a": {}}) as daemon:
        daemon.client().load("a")
        mapped = {Path(row.path).name for row in psutil.Process(daemon.process.pid).memory_maps()}
        assert "libc.so.6" in mapped
        assert not any(
            name.startswith(("libggml", "libllama", "libscipy_openblas", "_multiarray")) for name in mapped
        )
