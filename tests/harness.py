"""Real daemons for tests: started on a private socket and state folder, watched, and seen to leave nothing behind.

`running(...)` gives a `DaemonProcess`; models are scripts of the fake engine unless a path is given. Nothing here
sleeps for luck: readiness comes over sd_notify, conditions are awaited on events of the daemon itself.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from h2qctl import Client

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class DaemonProcess:
    """One daemon. `log` is its standard error so far, a line an event."""

    process: "subprocess.Popen[bytes]"
    folder: Path
    socket: Path
    config: Path
    notify: socket.socket
    clients: list[Client] = field(default_factory=list)

    def client(self) -> Client:
        """A client, closed with the daemon."""
        client = Client(str(self.socket))
        self.clients.append(client)
        return client

    def log(self) -> list[dict[str, Any]]:
        """The log's lines so far that are JSON."""
        lines = (self.folder / "log").read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def tree(self) -> list[psutil.Process]:
        """The daemon's process and all below it."""
        main = psutil.Process(self.process.pid)
        return [main, *main.children(recursive=True)]

    def worker_pid(self, model: str) -> int:
        """The process of a resident model."""
        with Client(str(self.socket)) as client:
            pid = next(row.pid for row in client.ps().models if row.name == model)
        assert pid is not None
        return pid

    def stop(self, timeout_s: float = 30) -> int:
        """SIGTERM, and the exit status."""
        self.process.terminate()
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()


def script(folder: Path, name: str, **fields: Any) -> Path:
    """A model file for the fake engine."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"h2qd_fake": 1, **fields}))
    return path


def config_text(models: Mapping[str, Path], extra: str = "") -> str:
    """A configuration that names fake models."""
    lines = ["log: {level: debug}", extra]
    if models:
        lines.append("models:")
        lines += [f"  {name}: {{path: {path}, backend: fake}}" for name, path in models.items()]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def running(
    folder: Path,
    models: Mapping[str, Mapping[str, Any]] | None = None,
    extra: str = "",
    environment: Mapping[str, str] | None = None,
) -> Iterator[DaemonProcess]:
    """A daemon that is ready and has registered all of `models`, which map names to fields of the fake's script.

    At the end it is stopped; no process of its tree and no socket may be left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scripts = {name: script(folder, name, **fields) for name, fields in (models or {}).items()}
    config = folder / "h2qd.yaml"
    config.write_text(config_text(scripts, extra))
    daemon = launch(folder, config, environment)
    family: list[psutil.Process] = []
    try:
        with daemon.client() as client:
            await_true(lambda: client.status().phase == "serving", "the daemon serves")
        yield daemon
        if daemon.process.poll() is None:
            family = daemon.tree()
            assert daemon.stop() == 0, (folder / "log").read_text()[-4000:]
    finally:
        for client in daemon.clients:
            client.close()
        if daemon.process.poll() is None:
            daemon.kill()
        daemon.notify.close()
    gone, alive = psutil.wait_procs(family, timeout=5)
    assert not alive, f"left behind: {alive}"
    assert not daemon.socket.exists()


def launch(folder: Path, config: Path, environment: Mapping[str, str] | None = None) -> DaemonProcess:
    """A daemon that said READY."""
    path = folder / "notify"
    path.unlink(missing_ok=True)
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(path))
    notify.settimeout(30)
    where = folder / "h2qd.sock"
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "h2qd", "--config", str(config), "--invariants"],
            cwd=ROOT,
            stderr=log,
            env={
                **os.environ,
                "H2Q_SOCKET": str(where),
                "H2Q_STATE_DIR": str(folder / "state"),
                "H2Q_TEST": "1",
                "NOTIFY_SOCKET": str(path),
                **(environment or {}),
            },
        )
    daemon = DaemonProcess(process, folder, where, config, notify)
    try:
        while b"READY=1" not in notify.recv(4096):
            pass
    except TimeoutError:
        daemon.kill()
        raise AssertionError((folder / "log").read_text()[-4000:]) from None
    return daemon


def await_true(condition: Callable[[], bool], what: str, timeout_s: float = 20) -> None:
    """Ask until `condition` holds: for states that announce themselves through no event of ours."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        os.sched_yield()


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def send_signal(pid: int, number: signal.Signals) -> None:
    """A real signal to a real process."""
    os.kill(pid, number)
