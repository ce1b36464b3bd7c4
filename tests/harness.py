"""Real daemons for tests: started on a private socket and state folder, watched, and seen to leave nothing behind.

`running(...)` gives a `DaemonProcess`; models are scripts of the fake engine unless a path is given. `Peer` speaks to
it frame by frame, `client_process` from a process of its own, which may be another user's. Nothing here sleeps for
luck: readiness comes over sd_notify, conditions are awaited on events of the daemon itself.
"""

import contextlib
import json
import os
import signal
import socket as sockets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, Self, TypeVar

import psutil
import zmq

from h2qctl import Client, H2qError
from h2qd.wire.frames import Kind, Request, Response, request_frames, split_response
from h2qd.wire.messages import Ask, Empty

ROOT = Path(__file__).resolve().parent.parent

DEFECTS = frozenset(
    {"request.defect", "core.defect", "effect.failed", "residents.task_failed", "daemon.start_defect", "library.log"}
)
"""Events of the log that no outside fault may bring about."""

_Result = TypeVar("_Result")


@dataclass
class DaemonProcess:
    """One daemon. `log` is its standard error so far, a line an event."""

    process: "subprocess.Popen[bytes]"
    folder: Path
    socket: Path
    config: Path
    notify: sockets.socket
    clients: list[Client] = field(default_factory=list)

    def client(self) -> Client:
        """A client, closed with the daemon."""
        client = Client(str(self.socket))
        self.clients.append(client)
        return client

    def log(self, event: str = "") -> list[dict[str, Any]]:
        """The log's lines so far that are JSON; only those of `event`, if it is given."""
        lines = (self.folder / "log").read_text(errors="replace").splitlines()
        entries = [json.loads(line) for line in lines if line.startswith("{")]
        return [entry for entry in entries if event in ("", entry["event"])]

    def rss_bytes(self) -> int:
        """The resident memory of the daemon's own process."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def zygote_pid(self) -> int:
        """The process that workers are forked from, once it is there."""
        found: list[psutil.Process] = []

        def look() -> bool:
            found[:] = psutil.Process(self.process.pid).children()
            return bool(found)

        await_true(look, "the zygote runs")
        return int(found[0].pid)

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
    within: Path | None = None,
) -> Iterator[DaemonProcess]:
    """A daemon that is ready and has registered all of `models`, which map names to fields of the fake's script.

    At the end it is stopped; no process of its tree, no socket and no half-written file may be left, and its log may
    tell of no defect.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scripts = {name: script(folder, name, **fields) for name, fields in (models or {}).items()}
    config = folder / "h2qd.yaml"
    config.write_text(config_text(scripts, extra))
    with started(folder, config, environment, within) as daemon:
        yield daemon


@contextlib.contextmanager
def started(
    folder: Path, config: Path, environment: Mapping[str, str] | None = None, within: Path | None = None
) -> Iterator[DaemonProcess]:
    """As `running`, for a configuration that is there; also for a second start in the same folder."""
    daemon = launch(folder, config, environment, within=within)
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
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive, f"left behind: {alive}"
    if daemon.process.returncode == 0:
        assert not daemon.socket.exists()
        assert not list((folder / "state").rglob("*.new"))
    defects = [entry for entry in daemon.log() if entry["event"] in DEFECTS]
    assert not defects, defects
    assert "Traceback" not in (folder / "log").read_text(errors="replace")


def launch(
    folder: Path,
    config: Path,
    environment: Mapping[str, str] | None = None,
    umask: int = -1,
    within: Path | None = None,
) -> DaemonProcess:
    """A daemon that said READY; with `within`, a cgroup's folder, it lives in there from its first page on."""
    path = folder / "notify"
    path.unlink(missing_ok=True)
    notify = sockets.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM)
    notify.bind(str(path))
    notify.settimeout(0.2)
    where = folder / "h2qd.sock"
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [*_entering(within), sys.executable, "-m", "h2qd", "--config", str(config), "--invariants"],
            cwd=ROOT,
            stderr=log,
            umask=umask,
            env={**daemon_environment(folder), "NOTIFY_SOCKET": str(path), **(environment or {})},
        )
    daemon = DaemonProcess(process, folder, where, config, notify)
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(TimeoutError):
            if b"READY=1" in notify.recv(4096):
                notify.settimeout(30)
                return daemon
    daemon.kill()
    notify.close()
    raise AssertionError((folder / "log").read_text()[-4000:])


def _entering(group: Path | None) -> list[str]:
    """The beginning of a command line that moves its process into a cgroup, and then becomes the rest."""
    return [] if group is None else ["/bin/sh", "-c", 'echo $$ >"$0" && exec "$@"', str(group / "cgroup.procs")]


def daemon_environment(folder: Path) -> dict[str, str]:
    """Where a daemon under test keeps its things, and leave to use the fake engine."""
    places = {"H2Q_SOCKET": str(folder / "h2qd.sock"), "H2Q_STATE_DIR": str(folder / "state"), "H2Q_TEST": "1"}
    return {**os.environ, **places}


def await_true(condition: Callable[[], bool], what: str, timeout_s: float = 20) -> None:
    """Ask until `condition` holds: for states that announce themselves through no event of ours."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.002)  # the time between two questions, not a wait for luck


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def send_signal(pid: int, number: signal.Signals) -> None:
    """A real signal to a real process."""
    os.kill(pid, number)


def background(work: Callable[[], _Result]) -> "Future[_Result]":
    """`work` on a thread of its own; its result, or what it raised."""
    future: Future[_Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is handed on to whoever asks for the result
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def code_of(future: "Future[Any]", timeout_s: float = 20) -> str:
    """The code of the error that a call in the background ended with."""
    error = future.exception(timeout_s)
    assert isinstance(error, H2qError), future
    return error.code


class Peer:
    """A client that says exactly what it is told to, frame by frame."""

    def __init__(self, path: Path, *, receive_queue: int = 0) -> None:
        self._numbers = count(1)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.setsockopt(zmq.RCVHWM, receive_queue)
        self.socket.connect(f"ipc://{path}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up, with whatever was not sent."""
        self._context.destroy(0)

    def send(self, *frames: bytes) -> None:
        """A message of these frames."""
        self.socket.send_multipart(list(frames))

    def ask(self, op: str, body: Ask | None = None, message_id: int = 0, deadline_ms: int | None = None) -> int:
        """A request that the protocol allows; its id."""
        number = message_id or next(self._numbers)
        self.send(*request_frames(Request(1, number, op, deadline_ms), body or Empty()))
        return number

    def hears(self, timeout_s: float) -> bool:
        """Whether something comes within that time."""
        return bool(self.socket.poll(round(timeout_s * 1000)))

    def receive(self, timeout_s: float = 10) -> tuple[Response, bytes]:
        """The next message."""
        assert self.hears(timeout_s), "the daemon says nothing"
        return split_response(self.socket.recv_multipart())

    def end_of(self, message_id: int, timeout_s: float = 10) -> tuple[Kind, bytes]:
        """The reply or error that ends a request; what comes before it is let go by."""
        deadline = time.monotonic() + timeout_s
        while True:
            response, body = self.receive(deadline - time.monotonic())
            if response.id == message_id and response.kind in (Kind.REPLY, Kind.ERROR):
                return response.kind, body


_CLIENT = """
import os, sys
import zmq, msgspec
from h2qctl import Client, H2qError
from h2qd.wire.frames import Request, request_frames
from h2qd.wire import messages as m
uid, path = int(sys.argv[1]), sys.argv[2]
if uid != os.getuid():
    os.setgroups([])
    os.setresuid(uid, uid, uid)
def said(text):
    print(text, flush=True)
"""


@contextlib.contextmanager
def client_process(daemon: DaemonProcess, code: str, uid: int | None = None) -> Iterator["subprocess.Popen[str]"]:
    """A process that runs `code`, as user `uid`: `path` is the socket, `said(text)` writes a line to its stdout.

    The user is changed after the imports, so that the interpreter need not be readable to it.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", _CLIENT + code, str(os.getuid() if uid is None else uid), str(daemon.socket)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def line_of(process: "subprocess.Popen[str]") -> str:
    """The next line that a client process said; empty at its end."""
    assert process.stdout is not None
    return process.stdout.readline().strip()
