"""Daemons to be measured: started as people start them, on a private socket and state folder, and stopped again.

No checks of invariants, no debug log: those cost what is measured here. Memory is read from /proc by the bench
itself, never asked of the daemon. A daemon that does not stop in order fails the bench.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from h2qctl import Client, H2qError

ROOT = Path(__file__).resolve().parent.parent.parent
_START_S_MAX = 30.0


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon that answers. `ready_s` counts from the start of its process to its first answer."""

    process: "subprocess.Popen[bytes]"
    socket: str
    ready_s: float

    def client(self) -> Client:
        """A new client; the caller closes it."""
        return Client(self.socket)

    def supervisor(self) -> psutil.Process:
        """The daemon's own process."""
        return psutil.Process(self.process.pid)

    def zygote(self) -> psutil.Process:
        """The process that workers are forked from."""
        return self.supervisor().children()[0]

    def tree_pss(self) -> int:
        """The memory of all its processes, in bytes; what they share counts once."""
        supervisor = self.supervisor()
        return sum(pss(process.pid) for process in (supervisor, *supervisor.children(recursive=True)))


@contextlib.contextmanager
def running(folder: Path, models: Mapping[str, Path], config: str = "") -> Iterator[Daemon]:
    """A daemon that serves and knows `models`; scripts (.json) run on the fake engine. `config`: further YAML."""
    folder.mkdir(parents=True, exist_ok=True)
    daemon = start(folder, models, config)
    try:
        with daemon.client() as client:
            while client.status().phase != "serving" or len(client.models().models) < len(models):
                time.sleep(0.01)
        yield daemon
    finally:
        stop(daemon, folder)


def start(folder: Path, models: Mapping[str, Path], config: str = "") -> Daemon:
    """A daemon that answered its first status. With the same folder again it knows what it knew."""
    socket = folder / "h2qd.sock"
    file = folder / "h2qd.yaml"
    file.write_text(_config(models) + config + "\n")
    began = time.perf_counter()
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "h2qd", "--config", str(file)],
            cwd=ROOT,
            stderr=log,
            env={
                **os.environ,
                "H2Q_SOCKET": str(socket),
                "H2Q_STATE_DIR": str(folder / "state"),
                "H2Q_TEST": "1",  # allows the fake engine
            },
        )
    while True:
        try:
            with Client(str(socket)) as client:
                client.status()
            return Daemon(process, str(socket), time.perf_counter() - began)
        except H2qError:
            if process.poll() is not None or time.perf_counter() - began > _START_S_MAX:
                process.kill()
                raise SystemExit("bench: the daemon does not answer:\n" + _tail(folder)) from None
            time.sleep(0.002)


def stop(daemon: Daemon, folder: Path) -> None:
    """SIGTERM, and nothing may be left."""
    family = [daemon.supervisor(), *daemon.supervisor().children(recursive=True)] if _lives(daemon) else []
    daemon.process.terminate()
    try:
        status = daemon.process.wait(30)
    except subprocess.TimeoutExpired:
        daemon.process.kill()
        status = daemon.process.wait()
    _, left = psutil.wait_procs(family, timeout=5)
    if status != 0 or left:
        raise SystemExit(f"bench: the daemon ended with status {status}, leaving {left}:\n" + _tail(folder))


def _lives(daemon: Daemon) -> bool:
    return daemon.process.poll() is None


def _tail(folder: Path) -> str:
    return (folder / "log").read_text(errors="replace")[-4000:]


def _config(models: Mapping[str, Path]) -> str:
    lines = ["models:" if models else "models: {}"]
    for name, path in models.items():
        lines.append(f"  {name}: {{path: {path}, backend: {'fake' if path.suffix == '.json' else 'llama'}}}")
    return "\n".join(lines) + "\n"


def pss(pid: int) -> int:
    """The memory of a process in bytes, shared pages divided among those who share them; 0 when it is gone."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0


def rss(pid: int) -> int:
    """The resident memory of a process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
