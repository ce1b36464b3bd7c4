"""The supervisor's side of zygote and workers, blocking and plain, for tests over real processes."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from h2qd.wire.workers import (
    Fork,
    Forked,
    FromWorker,
    FromZygote,
    Generate,
    Loaded,
    LoadModel,
    Reaped,
    Reassembler,
    Sampler,
    ZygoteReady,
    frame,
    from_worker,
    from_zygote,
)

PATIENCE_S = 20.0
"""Only a broken test waits this long."""

REPOSITORY = Path(__file__).parents[3]

M = TypeVar("M", bound=msgspec.Struct)


class WorkerPeer:
    """The supervisor's end of one worker's channel."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(PATIENCE_S)
        self._inbox = Reassembler()
        self._messages: deque[FromWorker] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.sock.close()

    def send(self, *messages: msgspec.Struct) -> None:
        for message in messages:
            self.sock.sendall(frame(message))

    def receive(self) -> FromWorker:
        while not self._messages:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError
            self._messages.extend(from_worker.decode(body) for body in self._inbox.feed(data))
        return self._messages.popleft()

    def until(self, kind: type[M]) -> tuple[M, list[FromWorker]]:
        """The next message of this kind, and what came before it."""
        before: list[FromWorker] = []
        while not isinstance(message := self.receive(), kind):
            before.append(message)
        return message, before

    def rest(self) -> list[FromWorker]:
        """Everything up to the end of the channel."""
        messages: list[FromWorker] = []
        with suppress(EOFError, ConnectionResetError):
            while True:
                messages.append(self.receive())
        return messages

    def silent(self, for_s: float) -> bool:
        """Nothing comes for so long."""
        return not self._messages and not select.select([self.sock], [], [], for_s)[0]

    def load(self, path: Path, *, ctx: int = 128) -> Loaded:
        self.send(LoadModel("fake", str(path), ctx))
        return self.until(Loaded)[0]


class ZygotePeer:
    """A zygote and the supervisor's end of its control socket."""

    def __init__(self, *, stderr: Path, env: dict[str, str] | None = None, small_buffer: bool = False) -> None:
        self.stderr = stderr
        self.control, its = socket.socketpair()
        if small_buffer:
            its.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        with its, stderr.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "h2qd.worker.zygote", "--fd", str(its.fileno())],
                pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=log,
                cwd=REPOSITORY,
                env={**os.environ, "H2Q_TEST": "1", **(env or {})},
            )
        self.control.settimeout(PATIENCE_S)
        self._inbox = Reassembler()
        self._messages: deque[FromZygote] = deque()
        self.ready = self.receive()
        assert isinstance(self.ready, ZygoteReady)

    def close(self) -> None:
        self.control.close()
        try:
            self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()

    def receive(self) -> FromZygote:
        while not self._messages:
            data = self.control.recv(65536)
            if not data:
                raise EOFError
            self._messages.extend(from_zygote.decode(body) for body in self._inbox.feed(data))
        return self._messages.popleft()

    def start_fork(self, worker: int, *, nice: int = 0) -> WorkerPeer:
        here, there = socket.socketpair()
        with there:
            socket.send_fds(self.control, [frame(Fork(worker, 900, nice))], [there.fileno()])
        return WorkerPeer(here)

    def fork(self, worker: int, *, nice: int = 0) -> tuple[WorkerPeer, int]:
        """A worker's channel and pid."""
        peer = self.start_fork(worker, nice=nice)
        forked = self._wait(lambda message: isinstance(message, Forked) and message.worker == worker)
        return peer, forked.pid

    def reaped(self, pid: int) -> Reaped:
        """How the worker ended."""
        reaped = self._wait(lambda message: isinstance(message, Reaped) and message.pid == pid)
        assert isinstance(reaped, Reaped)
        return reaped

    def _wait(self, wanted: Callable[[FromZygote], bool]) -> FromZygote:
        """The first such message; what else comes meanwhile is kept, in order."""
        others: deque[FromZygote] = deque()
        while not wanted(message := self.receive()):
            others.append(message)
        self._messages.extendleft(reversed(others))
        return message

    def log(self) -> list[dict[str, str | int]]:
        """The JSON lines on stderr."""
        lines = self.stderr.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


@contextmanager
def zygote(folder: Path, *, env: dict[str, str] | None = None, small_buffer: bool = False) -> Iterator[ZygotePeer]:
    """A zygote that ends with the block, and must."""
    peer = ZygotePeer(stderr=folder / "zygote.log", env=env, small_buffer=small_buffer)
    try:
        yield peer
    finally:
        peer.close()


def write_script(folder: Path, **script: object) -> Path:
    path = folder / "model.json"
    path.write_text(json.dumps({"h2qd_fake": 1, **script}))
    return path


def ask(request: int = 1, prompt: str = "once upon a time", *, max_tokens: int = 100) -> Generate:
    return Generate(request, max_tokens, Sampler(), prompt=prompt)


class Watch:
    """Notices the end of a process that need not be a child; open it while the process lives."""

    def __init__(self, pid: int) -> None:
        self._fd = os.pidfd_open(pid)

    def ended(self, within_s: float) -> bool:
        try:
            return bool(select.select([self._fd], [], [], within_s)[0])
        finally:
            os.close(self._fd)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
