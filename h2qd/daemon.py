"""The composition root: configuration in, a running daemon out, and its orderly end.

Builds every adapter, ties them to the supervisor, serves until the core says that nothing is left, and takes
things down in reverse. Decides nothing itself. Called by `__main__`.
"""

import asyncio
import contextlib
import os
import resource
import signal
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import zmq

from h2qd import policy
from h2qd.config import Config
from h2qd.core.effects import Clock, Timer
from h2qd.core.events import ForgetAsked, ModelRegistered, ServerAsked, StopAsked, TimerFired
from h2qd.core.records import Fault
from h2qd.errors import StartError
from h2qd.logs import get_logger
from h2qd.runtime import views
from h2qd.runtime.accelerators import Accelerators
from h2qd.runtime.adapters import Adapters
from h2qd.runtime.calls import Call, Calls
from h2qd.runtime.claims import Claims
from h2qd.runtime.commands import Commands, Surroundings
from h2qd.runtime.containment import Containers
from h2qd.runtime.elsewhere import Elsewhere
from h2qd.runtime.engines import Engines
from h2qd.runtime.errands import Errands
from h2qd.runtime.heap import Heap
from h2qd.runtime.imports import Imports
from h2qd.runtime.meter import rss_bytes
from h2qd.runtime.named import Named
from h2qd.runtime.notices import Notices
from h2qd.runtime.notify import Notifier
from h2qd.runtime.perform import Performer
from h2qd.runtime.pulls import Pulls
from h2qd.runtime.readings import Gauge
from h2qd.runtime.remotes import Remotes
from h2qd.runtime.reports import Reports
from h2qd.runtime.residents import Residents
from h2qd.runtime.restoration import Restoration
from h2qd.runtime.saved import SavedSessions
from h2qd.runtime.scales import Scales
from h2qd.runtime.server import Client, Server, SocketInUseError
from h2qd.runtime.shapes import shape_of
from h2qd.runtime.stall import StallTrigger
from h2qd.runtime.supervisor import Supervisor
from h2qd.runtime.targets import Targets, exposed
from h2qd.runtime.timers import Timers
from h2qd.runtime.watch import Watch
from h2qd.runtime.zygote import Zygote
from h2qd.store.lock import LockedError, StateLock
from h2qd.store.registry import Manifest, Registry
from h2qd.wire import messages as m
from h2qd.wire.catalogue import Access
from h2qd.wire.frames import Request
from h2qd.wire.limits import HEARTBEAT_MS

log = get_logger()

_TICK_S = 1.0
_NOBODY = 0
"""Asks for what the daemon does by itself; clients' requests are numbered from 1."""

_FILES_OPEN = 65536


class Daemon:
    """One daemon from start to end."""

    def __init__(self, config: Config, registry: Registry, *, checks: bool) -> None:
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._began = time.monotonic()
        self._phase = "starting"
        self._ended = asyncio.Event()
        self._pid = os.getpid()
        self._missing: dict[str, m.ModelRow] = {}
        self._manifests: dict[str, Manifest] = {}
        self._adapters = Adapters.of(config)
        self._quantize = policy.quantize(config)
        self._meter = ThreadPoolExecutor(1, "meter")
        self._disk = ThreadPoolExecutor(1, "disk")
        self._registry = registry
        self._notifier = Notifier.from_environ(os.environ)
        self._heap = Heap(lambda: rss_bytes(self._pid))

        self._supervisor = Supervisor(policy.rules(config), checks=checks)
        self._timers = Timers(lambda timer: self._supervisor.post(TimerFired(self._loop.time(), timer)))
        self._calls = Calls(self._call_gone)
        self._notices = Notices(self._calls)
        self._zygote = Zygote(remotes=bool(config.remotes))
        self._scales = Scales(self._zygote, self._meter)
        self._accelerators = Accelerators.open()
        self._gauge = Gauge(accelerators=self._accelerators)
        elsewhere = Elsewhere(self._manifests, lambda: self._supervisor.state.models)
        self._watch = Watch(
            self._gauge,
            config.memory,
            self._supervisor.post,
            self._loop.time,
            lambda: sum(elsewhere.foreign_bytes().values()),
        )
        targets = Targets(config.remotes, lambda: self._accelerators.have_memory)
        self._stalls: StallTrigger | None = None
        self._containers = Containers(lambda planned: policy.margin_bytes(config, planned))
        patience = policy.patience(config)
        folder = Path(config.state_dir) / "sessions"
        self._residents = Residents(
            self._zygote,
            self._containers,
            patience,
            self._calls,
            self._supervisor.post,
            self._scales,
            self._watch.look,
            Engines(
                config.worker.threads,
                str(folder),
                config.sessions.disk_quota_bytes,
                self._quantize,
                targets,
                self._adapters,
            ),
            elsewhere,
        )
        self._zygote.on_childless = self._residents.learn_idle
        errands = Errands(self._zygote, patience)
        self._imports = Imports(errands, registry, self._manifests, self._disk, self._model_registered)
        self._named = Named(config.models, self._imports, self._manifests, self._missing)
        self._remotes = Remotes(
            targets,
            errands,
            elsewhere,
            os.environ,
            self._manifests,
            self._missing,
            self._remote_has,
            self._remote_lost,
            self._remote_asked,
        )
        self._restoration = Restoration(
            self._supervisor, self._remotes, self._manifests, loads=config.residency.restore
        )
        self._followers: list[asyncio.Task[None]] = []
        self._reports = reports = Reports(
            config,
            self._supervisor,
            self._calls,
            self._residents,
            elsewhere,
            self._watch,
            self._containers,
            self._zygote,
            self._scales,
            self._manifests,
            self._missing,
            lambda: self._phase,
            lambda: self._stalls.trouble if self._stalls is not None else "not started yet",
            exposed(config.remotes),
        )
        claims = Claims(
            self._supervisor,
            self._calls,
            self._manifests,
            self._missing,
            self._remotes,
            self._adapters,
            config.requests.deadline_s,
            lambda name: policy.fallback(config, name),
            lambda name: policy.fallback_after_s(config, name),
            self._tell_progress,
        )
        self._commands = Commands(
            self._supervisor,
            self._calls,
            self._residents,
            self._notices,
            self._imports,
            self._remotes,
            Pulls(self._remotes, targets, errands),
            SavedSessions(
                folder, config.sessions.disk_quota_bytes, self._manifests, self._disk, self._residents.forget
            ),
            claims,
            self._manifests,
            self._missing,
            Surroundings(reports.status, reports.version, reports.config, reports.doctor, reports.top),
            self._access,
            self._adapters,
            self._tell_progress,
        )
        self._supervisor.perform = Performer(
            self._calls,
            self._residents,
            self._notices,
            self._timers,
            registry,
            self._manifests,
            self._disk,
            self._heap.trim,
            self._ended.set,
            claims.fall_back,
            self._remotes.ask,
        )
        self._supervisor.settled = self._refresh
        self._server: Server | None = None

    # --- life -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until told to stop. Raises `StartError`."""
        config = self._config
        self._containers.open()  # first: this may move the daemon, and what it starts and measures is to go along
        self._watch.look()
        if config.memory.strict and (complaint := next(self._watch.complaints(0), None)) is not None:
            raise StartError(f"cannot keep to the budget (memory.strict): {complaint}")
        self._server = self._open_server()
        self._calls.server = self._server
        self._zygote.start()
        self._stalls = StallTrigger(self._loop, self._gauge.pressure_files, lambda: self._watch.look(stalled=True))
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop, number)
        self._register_known()
        self._tick()
        self._beat()
        self._notifier.ready(f"serving on {config.socket.path}")
        log.info("daemon.ready", socket=config.socket.path, s=round(time.monotonic() - self._began, 3), pid=self._pid)
        for name in exposed(config.remotes):
            log.warning("remote.key_in_plain", remote=name, url=config.remotes[name].url)
        for name in config.remotes:
            self._follow(self._remotes.follow(name))
        starting = self._loop.create_task(self._finish_start())
        try:
            await self._ended.wait()
        finally:
            tasks = [starting, *self._followers]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self._close()

    def _open_server(self) -> Server:
        socket = self._config.socket
        try:
            return Server(
                Path(socket.path),
                socket.mode,
                lambda uid: self._access(uid) is not None,
                self._message,
                self._calls.client_gone,
            )
        except (SocketInUseError, OSError, zmq.ZMQError) as error:
            raise StartError(f"cannot listen on {socket.path}: {error}") from error

    def _follow(self, work: Coroutine[None, None, None]) -> None:
        """Have work of the daemon's own go on until its end; a defect that ends it sooner is told when it does."""
        task = self._loop.create_task(work)
        task.add_done_callback(_tell_defect)
        self._followers.append(task)

    async def _finish_start(self) -> None:
        """Register what the configuration names and is not known yet; then load what was active last."""
        try:
            await self._named.register()
            memory = await self._loop.run_in_executor(self._disk, self._registry.recall)
            await self._restoration.begin(memory)
            self._serving()
            self._follow(self._named.follow())
            await self._restoration.finish(memory)
        except Exception:  # the models that are there can be served all the same
            log.exception("daemon.start_defect")
        finally:
            self._serving()

    def _serving(self) -> None:
        self._phase = "serving" if self._phase == "starting" else self._phase

    def _register_known(self) -> None:
        """Tell the core of the models on disk; those that only an earlier configuration named are forgotten."""
        manifests, complaints = self._registry.load()
        for complaint in complaints:
            log.error("registry.broken", complaint=complaint)
        for manifest in manifests:
            if manifest.source == "config" and not self._named.is_named(manifest):
                with contextlib.suppress(OSError):  # a disk that cannot be written: the next start tries again
                    self._registry.remove(manifest.name)
                continue
            self._manifests[manifest.name] = manifest
            self._model_registered(manifest)

    def _stop(self, number: int) -> None:
        """SIGTERM or SIGINT: drain; the second one: the drain is over, and what holds memory is killed."""
        again = self._phase == "stopping"
        log.info("daemon.stop_asked", signal=signal.Signals(number).name, at_once=again)
        self._phase = "stopping"
        self._notifier.stopping("draining")
        if not again:
            self._loop.call_later(
                policy.stop_s_max(self._config), self._overdue
            )  # first: no defect below may lose it
        self._commands.stop_jobs()
        self._supervisor.post(StopAsked(self._loop.time(), self._config.shutdown.drain_s))
        if again:
            self._supervisor.post(TimerFired(self._loop.time(), Timer(Clock.DRAIN, 0)))
            self._residents.close()
            self._loop.call_later(2 * self._config.worker.stop_grace_s, self._ended.set)  # a defect must not keep it

    def _overdue(self) -> None:
        """All that a stop may take is over, and it has not ended: that is a defect, and must not keep the daemon."""
        log.error("daemon.stop_overdue", state=repr(self._supervisor.state.stopping))
        self._ended.set()

    def _close(self) -> None:
        self._notices.end_all()
        if self._stalls is not None:
            self._stalls.close()
        self._timers.close()
        self._residents.close()
        self._zygote.close()
        if self._server is not None:
            self._server.close()
        self._disk.shutdown(wait=True)
        self._meter.shutdown(wait=True)
        self._gauge.close()
        self._accelerators.close()
        self._containers.close()
        log.info("daemon.stopped", s=round(time.monotonic() - self._began, 1))

    # --- what happens ------------------------------------------------------------------------------

    def _message(self, client: Client, request: Request, body: bytes) -> None:
        if self._server is not None:
            self._commands.handle(self._server, client, request, body)

    def _call_gone(self, call: Call) -> None:
        self._commands.gone(call)

    def _model_registered(self, manifest: Manifest) -> None:
        named = policy.named(self._config, manifest.name)
        ctx = (named.ctx if named is not None else None) or self._config.model.ctx
        shape = shape_of(
            manifest.facts, self._quantize.get(manifest.name, ""), self._adapters.size_bytes(manifest.name)
        )
        traits = policy.traits(self._config, manifest.name)
        lessons = tuple(manifest.lessons)
        now = self._loop.time()
        self._supervisor.post(ModelRegistered(now, manifest.name, shape, ctx, traits, lessons, manifest.remote))

    def _remote_has(self, manifest: Manifest) -> None:
        self._manifests[manifest.name] = manifest
        self._model_registered(manifest)

    def _remote_asked(self, name: str, fault: Fault | None) -> None:
        self._supervisor.post(ServerAsked(self._loop.time(), name, fault))

    def _remote_lost(self, name: str) -> None:
        """A server no longer has it: it is forgotten, unless it is in use."""
        self._supervisor.post(ForgetAsked(self._loop.time(), _NOBODY, name))

    def _tell_progress(self, call: Call) -> None:
        """Tell one call how far it is."""
        self._calls.tell_progress(call, views.progress(self._supervisor.state, self._residents, call))

    def _refresh(self) -> None:
        """After events: whoever waits hears at once where it stands."""
        state = self._supervisor.state
        for ticket in state.waiting:
            if (call := self._calls.get(ticket.request)) is not None:
                self._tell_progress(call)

    def _tick(self) -> None:
        """Once a second: memory, the watchdog, clients that left."""
        self._loop.call_later(_TICK_S, self._tick)  # first: no defect below may be the last tick
        self._watch.look()
        self._residents.weigh()
        if self._server is not None:
            self._server.sweep(self._calls.idle)
        self._notifier.watchdog()
        state = self._supervisor.state
        self._notifier.status(f"{self._phase}: {state.active or 'no model'} active, {len(state.running)} running")
        self._heap.look()

    def _beat(self) -> None:
        """Signs of life, looked for twice in `HEARTBEAT_MS`, so that no silence is longer than that."""
        self._loop.call_later(HEARTBEAT_MS / 2000, self._beat)
        self._commands.beat()

    def _access(self, uid: int) -> Access | None:
        return self._config.access.level(uid, os.getuid())


def _tell_defect(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("daemon.follower_defect", exc_info=error)


def run(config: Config, *, checks: bool = False) -> None:
    """Run a daemon to its end. Raises `StartError`."""
    folder = Path(config.state_dir)
    try:
        lock = StateLock(folder)
    except LockedError as error:
        raise StartError(str(error)) from error
    except OSError as error:
        raise StartError(f"cannot use the state folder {folder}: {error.strerror}") from error
    try:
        _allow_many_files()
        asyncio.run(_run(config, _open_registry(folder), checks=checks))
    finally:
        lock.release()


def _open_registry(folder: Path) -> Registry:
    try:
        return Registry(folder)
    except OSError as error:
        raise StartError(f"cannot use the state folder {folder}: {error.strerror}") from error


async def _run(config: Config, registry: Registry, *, checks: bool) -> None:
    await Daemon(config, registry, checks=checks).run()


def _allow_many_files() -> None:
    """Connections cost a descriptor each; a thousand idle ones must not keep others out."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_OPEN if hard == resource.RLIM_INFINITY else min(hard, _FILES_OPEN)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
