"""The zygote, seen from the supervisor: one small process with the imports done, from which workers are forked.

It is started beside the socket, not before it: forks asked for earlier wait in its channel. When it dies, its
workers die with it; it is started again, after a back-off that doubles while it keeps dying. Forks and reaps are
passed to whoever asked. Used by `workers` only.
"""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Protocol

from h2qd.logs import get_logger
from h2qd.runtime.channel import Channel
from h2qd.wire.workers import Fork, Forked, Reaped, ZygoteReady, from_zygote

log = get_logger()

_BACKOFF_FIRST_S = 0.5
_BACKOFF_MAX_S = 30.0
_STABLE_S = 30.0

_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",  # a fork must find no threads, and the supervisor's children use none of it
    "GGML_NO_BACKTRACE": "1",  # ggml's abort would start a debugger
    "PYTHONUNBUFFERED": "1",
}


class Parent(Protocol):
    """Who asked for a worker. `pid` is None until it runs."""

    pid: int | None

    def forked(self, pid: int) -> None:
        """The worker runs."""

    def reaped(self, status: int | None, peak_bytes: int) -> None:
        """The worker is gone; `status` as in `Reaped`, None when the zygote is gone too."""


class Zygote:
    """The zygote process, kept alive.

    `ready` once its imports are done; `on_childless` is called then, and whenever the last worker is gone.
    `remotes`: some workers will speak to servers, so what that takes is imported, too.
    """

    def __init__(self, *, remotes: bool = False) -> None:
        self._flags = ("--remotes",) if remotes else ()
        self.on_childless: Callable[[], None] = _nothing
        self._loop = asyncio.get_running_loop()
        self._workers: dict[int, Parent] = {}
        self._asked: list[tuple[Fork, socket.socket]] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._started_at = 0.0
        self._backoff_s = _BACKOFF_FIRST_S
        self._closing = False
        self.libraries: dict[str, str] = {}
        self.ready = False

    @property
    def pid(self) -> int | None:
        """The zygote's process, if it runs."""
        return self._process.pid if self._process is not None else None

    @property
    def pids(self) -> list[int]:
        """The processes that hold memory for models and jobs: the zygote's own and all its workers'."""
        family = (self.pid, *(parent.pid for parent in self._workers.values()))
        return [pid for pid in family if pid is not None]

    @property
    def childless(self) -> bool:
        """Whether no worker runs or is asked for."""
        return not self._workers

    def start(self) -> None:
        """Start the process, now or, where the system has no room for one, after the back-off."""
        if self._closing or self._process is not None:
            return
        self._started_at = self._loop.time()
        try:
            self._process, ours = _start(self._flags)
        except OSError as error:
            self._start_later(f"cannot start it: {error}")
            return
        self._channel = Channel(ours, self._take, self._closed)
        log.debug("zygote.started", pid=self._process.pid)
        for order, end in self._asked:
            self._channel.send(order, (end.detach(),))
        self._asked.clear()

    def fork(self, worker: int, end: socket.socket, oom_score_adj: int, nice: int, parent: Parent) -> None:
        """Have `worker` forked, serving `end`, which is the worker's from now on."""
        self._workers[worker] = parent
        order = Fork(worker, oom_score_adj, nice)
        if self._channel is None:
            self._asked.append((order, end))
        else:
            self._channel.send(order, (end.detach(),))

    def replace(self, why: str) -> None:
        """End this process, which no longer does what it is for, and every worker with it; start another."""
        log.error("zygote.replaced", why=why)
        if self._channel is not None:
            self._channel.close(why)
        else:
            self._lose_all()

    def _take(self, body: bytes) -> None:
        match from_zygote.decode(body):
            case ZygoteReady(libraries=libraries):
                self.ready, self.libraries = True, libraries
                log.info("zygote.ready", s=round(self._loop.time() - self._started_at, 3), **libraries)
                if self.childless:
                    self.on_childless()
            case Forked(worker=worker, pid=pid):
                if (parent := self._workers.get(worker)) is not None:
                    parent.forked(pid)
            case Reaped(worker=worker, status=status, peak_bytes=peak):
                if (parent := self._workers.pop(worker, None)) is not None:
                    parent.reaped(status, peak)
                if self.childless:
                    self.on_childless()

    def _lose(self, worker: int) -> None:
        if (parent := self._workers.pop(worker, None)) is not None:
            parent.reaped(None, 0)

    def _closed(self, why: str) -> None:
        process, self._process, self._channel, self.ready = self._process, None, None, False
        if process is not None:
            process.kill()  # closing the channel ends it anyway; this bounds how long that takes
            process.wait()
        self._lose_all()
        if self._closing:
            return
        if self._loop.time() - self._started_at >= _STABLE_S:
            self._backoff_s = _BACKOFF_FIRST_S
        self._start_later(why)

    def _lose_all(self) -> None:
        """Report every worker gone, also those that were asked for and never forked."""
        for _, end in self._asked:
            end.close()
        self._asked.clear()
        for worker in list(self._workers):
            self._lose(worker)

    def _start_later(self, why: str) -> None:
        log.error("zygote.died", why=why, again_in_s=self._backoff_s)
        self._loop.call_later(self._backoff_s, self.start)
        self._backoff_s = min(2 * self._backoff_s, _BACKOFF_MAX_S)

    def close(self) -> None:
        """End the process, and with it every worker that is left."""
        self._closing = True
        if self._channel is not None:
            self._channel.close()
        else:
            self._lose_all()


def _start(flags: tuple[str, ...]) -> tuple["subprocess.Popen[bytes]", socket.socket]:
    """A new zygote and our end of its channel. Raises OSError, leaving nothing open."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "h2qd.worker.zygote", "--fd", str(theirs.fileno()), *flags],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **_ENVIRONMENT},
                start_new_session=True,  # a Ctrl-C meant for the daemon must not reach workers before the drain
            )
        except BaseException:
            ours.close()
            raise
    return process, ours


def _nothing() -> None:
    """Nobody wants to know."""
