"""Worker processes: started through the zygote, watched, asked to go, made to go.

A `Worker` turns one process and its channel into callbacks, each worker ending in exactly one `on_exit`. It knows
why the process went (it was told to, it said that its load failed, it hung, it died), not what that means for
residency. A worker gets its order once it is inside of its container, if it has one, so that all it takes counts
there. The kill ladder: ask, SIGTERM, SIGKILL to the group, `stop_grace_s` between the rungs. A process that cannot be
had, or cannot be reaped after that, is the zygote's fault, and the zygote is replaced.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import psutil

from h2qd.core.records import Fault
from h2qd.logs import get_logger
from h2qd.runtime.channel import Channel
from h2qd.runtime.containment import Container
from h2qd.runtime.zygote import Zygote
from h2qd.wire.codes import CODES
from h2qd.wire.names import shown
from h2qd.wire.workers import (
    FromWorker,
    InspectFile,
    ListModels,
    LoadFailed,
    LoadModel,
    ParkModel,
    Ping,
    Pong,
    PullModel,
    ResumeModel,
    SavingSessions,
    StopWorker,
    from_worker,
)

log = get_logger()

_REBUILD = "on this device: pip install --force-reinstall --no-deps --no-cache-dir --no-binary :all: llama-cpp-python"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a worker may take, in seconds, and how it is started."""

    start_s: float = 10.0
    load_s: float = 600.0
    stall_s: float = 60.0
    stop_grace_s: float = 5.0
    save_s: float = 30.0
    ping_s: float = 2.0
    nice: int = 0
    oom_score_adj: int = 900


@dataclass(frozen=True, slots=True)
class Exit:
    """How a worker ended. `fault` is None when it was told to go and went."""

    fault: Fault | None
    status: int | None
    peak_bytes: int


class Worker:
    """One worker process from fork to reap."""

    def __init__(
        self,
        number: int,
        label: str,
        order: LoadModel | InspectFile | ListModels | PullModel,
        zygote: Zygote,
        patience: Patience,
        on_message: Callable[[FromWorker], None],
        on_exit: Callable[[Exit], None],
        container: Container | None = None,
    ) -> None:
        self.number = number
        self.label = label
        self.pid: int | None = None
        self._order = order
        self._container = container
        self._zygote = zygote
        self._patience = patience
        self._on_message = on_message
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self._told_to_go = False
        self._saves = False  # it was told to, and has not begun yet
        self._rung = 0
        self._fault: Fault | None = None
        self._pings = 0
        self._pong = Pong(0, 0, busy=False)
        self._alive_at = self._loop.time()
        self._gone = False
        self._timer: asyncio.TimerHandle | None = None
        self._ping_timer: asyncio.TimerHandle | None = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)  # the last thing here that may raise
        self._channel = Channel(ours, self._take, self._channel_closed)
        self._limit(patience.start_s, f"did not start within {patience.start_s:g} s")
        zygote.fork(number, theirs, patience.oom_score_adj, patience.nice, self)

    # --- what the zygote says (its Parent) -------------------------------------------------------

    def forked(self, pid: int) -> None:
        """The process runs and may begin: from now on its load is timed, and it is asked how it is."""
        self.pid = pid
        log.debug("worker.forked", worker=self.number, pid=pid, model=self.label)
        if self._rung > 0:
            self._climb()
            return
        if self._container is not None:
            self._container.attach(pid)
        self._channel.send(self._order)
        self._alive_at = self._loop.time()
        self._limit(self._patience.load_s, f"did not finish loading within {self._patience.load_s:g} s")
        self._ping()

    def reaped(self, status: int | None, peak_bytes: int) -> None:
        """The process is gone."""
        self._gone = True  # from here on its number may be another's
        self._channel.close()
        self._cancel_timers()
        fault = self._fault
        if fault is None and not self._told_to_go:
            fault = self._death(status, peak_bytes)
        if self._container is not None:
            self._container.close()
        expected = (None, 0, -signal.SIGTERM, -signal.SIGKILL)
        told = log.info if status in expected else log.warning
        told(
            "worker.exited",
            worker=self.number,
            pid=self.pid,
            model=self.label,
            status=status,
            peak_bytes=peak_bytes,
            fault=fault.message if fault else None,
        )
        self._on_exit(Exit(fault, status, peak_bytes))

    def _death(self, status: int | None, peak_bytes: int) -> Fault:
        """Why the process died of itself. Nobody here killed it, so a SIGKILL may be the kernel's, out of memory."""
        if status == -signal.SIGKILL and self._container is not None:
            fault = self._container.fault(self.label, peak_bytes)
            if fault is not None:
                return fault
        what = f"cannot go on: the process of {self.label} died ({_how(status)})"
        if status == -signal.SIGILL:
            why = "its engine's library was built for another CPU"
            return Fault("worker_crashed", what, (why,), fix=_REBUILD)
        return Fault("worker_crashed", what)

    # --- talking --------------------------------------------------------------------------------

    def send(self, message: msgspec.Struct) -> None:
        """Say something to the worker."""
        self._channel.send(message)

    @property
    def limit_bytes(self) -> int | None:
        """Where the kernel ends it."""
        return self._container.limit_bytes if self._container is not None else None

    def park(self, order: ParkModel) -> None:
        """Have it save its sessions and free its context, in the time that it would have to stop."""
        self._saves = True
        self._channel.send(order)
        self._limit(self._patience.stop_grace_s, f"did not park within {self._patience.stop_grace_s:g} s")

    def resume(self, order: ResumeModel, planned_bytes: int) -> None:
        """Have it make a context again; that is timed as a load."""
        if self._container is not None:
            self._container.resize(planned_bytes)
        self._channel.send(order)
        self._alive_at = self._loop.time()
        self._limit(self._patience.load_s, f"did not resume within {self._patience.load_s:g} s")

    def settled(self) -> None:
        """The load, or the parking, is over; only stalls are timed from now on."""
        if self._rung == 0:
            self._cancel_limit()

    def _take(self, body: bytes) -> None:
        message = from_worker.decode(body)
        if isinstance(message, Pong):
            self._take_pong(message)
        elif isinstance(message, LoadFailed):
            code = message.code if message.code in CODES else "load_failed"
            self._fault = Fault(code, shown(message.message, 1000), away=message.away)
            self._limit(self._patience.stop_grace_s, "did not go after its load had failed")
        elif isinstance(message, SavingSessions):
            self._saving()
        else:
            self._on_message(message)

    def _saving(self) -> None:
        """Before it stops or parks it writes its sessions, which takes the time of a disk; once."""
        if not self._saves:
            return
        self._saves = False
        if self._rung == 1:
            self._cancel_limit()
            self._timer = self._loop.call_later(self._patience.save_s, self._next_rung)
        elif self._rung == 0:
            self._limit(self._patience.save_s, f"did not save its sessions within {self._patience.save_s:g} s")

    def _channel_closed(self, why: str) -> None:
        """The worker closed its end, or broke the protocol: either way it is of no more use."""
        if self.pid is not None and not self._told_to_go:
            log.debug("worker.channel_closed", worker=self.number, why=why)
        self._limit(self._patience.stop_grace_s, f"closed its channel and did not go: {why}")

    # --- watching -------------------------------------------------------------------------------

    def _ping(self) -> None:
        if self._loop.time() - self._alive_at > self._patience.stall_s:
            self._hang(f"made no progress for {self._patience.stall_s:g} s")
            return
        self._pings += 1
        self._channel.send(Ping(self._pings))
        self._ping_timer = self._loop.call_later(self._patience.ping_s, self._ping)

    def _take_pong(self, pong: Pong) -> None:
        if pong.beat != self._pong.beat or not pong.busy:
            self._alive_at = self._loop.time()
        self._pong = pong

    def _limit(self, seconds: float, what: str) -> None:
        self._cancel_limit()
        self._timer = self._loop.call_later(seconds, self._hang, what)

    def _hang(self, what: str) -> None:
        log.error("worker.hung", worker=self.number, pid=self.pid, model=self.label, what=what)
        if self._fault is None and not self._told_to_go:
            self._fault = Fault("worker_hung", f"cannot go on: the process of {self.label} {what} and was killed")
        self.stop(at_once=True)

    # --- the kill ladder ------------------------------------------------------------------------

    def stop(self, *, at_once: bool = False, save: bool = False) -> None:
        """Have the worker go. `at_once` begins with SIGKILL. `save`: it writes its sessions first."""
        if self._gone:
            return
        if self._fault is None:
            self._told_to_go = True
        self._saves = save
        if at_once:
            self._rung = 3
            self._climb()
        elif self._rung == 0:
            self._rung = 1
            self._climb()

    def _climb(self) -> None:
        """Stand on the current rung, and go on to the next after a while."""
        self._cancel_timers()
        if self._rung == 1:
            self._channel.send(StopWorker(self._saves))
        elif self.pid is not None:
            self._kill(signal.SIGTERM if self._rung == 2 else signal.SIGKILL)
        self._timer = self._loop.call_later(self._patience.stop_grace_s, self._next_rung)

    def _next_rung(self) -> None:
        if self._rung == 3:
            self._outlive_zygote()
            return
        self._rung += 1
        log.warning("worker.stop_escalates", worker=self.number, pid=self.pid, model=self.label, rung=self._rung)
        self._climb()

    def _outlive_zygote(self) -> None:
        """SIGKILL was not enough. Dead, or never born: the zygote does not say so. Alive: it waits in the kernel."""
        if self.pid is None or not _runs(self.pid):
            self._zygote.replace(f"it did not report the end of worker {self.number}")
            return
        log.error("worker.unkillable", worker=self.number, pid=self.pid, model=self.label)
        self._climb()

    def _kill(self, number: signal.Signals) -> None:
        if self.pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)  # it may not lead its group yet

    def _cancel_limit(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _cancel_timers(self) -> None:
        self._cancel_limit()
        if self._ping_timer is not None:
            self._ping_timer.cancel()
            self._ping_timer = None


def _runs(pid: int) -> bool:
    """Whether a process of that number exists and is no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _how(status: int | None) -> str:
    if status is None:
        return "with the process it was forked from"
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-status).name}"
    return f"status {status}"
