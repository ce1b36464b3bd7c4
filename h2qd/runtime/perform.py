"""Effects performed: each of the core's decisions handed to the adapter that carries it out.

An effect that fails must not leave anybody waiting. What would have ended in an event ends in it all the same, as a
failure of the model or request that it was for; what would have answered a request answers it as our defect. What
remains (a notice, a timer's end, a line on disk) is logged and costs nothing else. Called by `supervisor`; raises
nothing.
"""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import assert_never

import msgspec

from h2qd.core.effects import (
    AskServer,
    ClearTimer,
    Complete,
    Effect,
    Exit,
    Learn,
    ParkWorker,
    Publish,
    Refuse,
    Remember,
    ResumeWorker,
    SetTimer,
    StartGeneration,
    StartWorker,
    StopGeneration,
    StopWorker,
    TellCold,
    TellForgotten,
    TellPinned,
    TellResident,
    TrimCaches,
)
from h2qd.core.lessons import Lesson
from h2qd.core.records import Fault
from h2qd.logs import get_logger
from h2qd.runtime import results
from h2qd.runtime.calls import Call, Calls
from h2qd.runtime.notices import Notices
from h2qd.runtime.residents import Residents
from h2qd.runtime.timers import Timers
from h2qd.runtime.views import released, residency
from h2qd.store.registry import Manifest, Memory, Registry
from h2qd.wire.messages import Pinned, Removed, Unloaded

log = get_logger()


class Performer:
    """The adapters, and which of them does what."""

    def __init__(
        self,
        calls: Calls,
        residents: Residents,
        notices: Notices,
        timers: Timers,
        registry: Registry,
        manifests: dict[str, Manifest],
        disk: Executor,
        trim: Callable[[], None],
        on_exit: Callable[[], None],
        otherwise: Callable[[Call, Fault], bool],
        ask_server: Callable[[str, float], None],
    ) -> None:
        self._calls = calls
        self._residents = residents
        self._notices = notices
        self._timers = timers
        self._registry = registry
        self._manifests = manifests
        self._disk = disk
        self._trim = trim
        self._on_exit = on_exit
        self._otherwise = otherwise
        self._ask_server = ask_server

    def __call__(self, effect: Effect) -> None:
        """Perform one effect. Nothing here waits."""
        try:
            self._perform(effect)
        except Exception:  # whatever an adapter met, the core's next decision must be possible
            log.exception("effect.failed", effect=repr(effect))
            self._make_up_for(effect)

    def _make_up_for(self, effect: Effect) -> None:
        """Bring about the end that a failed effect owes."""
        match effect:
            case StartWorker(worker=worker, model=model):
                self._residents.not_started(worker, model, "a defect, see the log")
            case StopWorker(worker=worker) | ParkWorker(worker=worker) | ResumeWorker(worker=worker):
                self._residents.kill(worker)
            case StartGeneration(request=request):
                self._residents.not_generated(request)
            case Complete() | TellResident() | TellCold() | TellPinned() | TellForgotten() | Refuse():
                self._apologize(effect.request)
            case _:
                pass

    def _apologize(self, request: int) -> None:
        """Answer a request as our defect, unless it was answered."""
        fault = Fault("internal", "cannot say how the request ended: a defect, see the log")
        with contextlib.suppress(Exception):  # logged once already, and there is nobody else to tell
            self._with(request, lambda call: self._calls.error(call, fault))

    def _perform(self, effect: Effect) -> None:  # noqa: C901, PLR0912 - one flat list of effects
        match effect:
            case StartWorker(worker=worker, model=model, terms=terms, slots=slots, gpu_layers=layers):
                draft = self._manifests.get(terms.draft)
                self._residents.start(worker, self._manifests[model], terms, slots, layers, draft)
            case ResumeWorker(worker=worker, terms=terms, slots=slots):
                self._residents.resume(worker, terms, slots, self._manifests.get(terms.draft))
            case ParkWorker(worker=worker):
                self._residents.park(worker)
            case StopWorker(worker=worker, at_once=at_once):
                self._residents.stop(worker, at_once=at_once)
            case StartGeneration(request=request, worker=worker):
                self._residents.generate(request, worker)
            case StopGeneration(request=request, worker=worker):
                self._residents.cancel(request, worker)
            case Complete(request=request):
                self._complete(request)
            case TellResident(request=request):
                self._with(request, lambda call: self._calls.reply(call, residency(effect, call.arrived)))
            case TellPinned(request=request):
                self._pin_told(request, Pinned(effect.model, effect.pinned, effect.changed))
            case TellCold(request=request, model=model):
                told = None if effect.released is None else released(effect.released)
                body = Unloaded(model, told is not None, told)
                self._with(request, lambda call: self._calls.reply(call, body))
            case TellForgotten(request=request, model=model):
                self._forget(request, model)
            case Refuse(request=request, fault=fault):
                self._with(request, lambda call: self._refuse(call, fault))
            case SetTimer(timer=timer, at=at):
                self._timers.set(timer, at)
            case ClearTimer(timer=timer):
                self._timers.clear(timer)
            case Publish(topic=topic, event=event, model=model, data=data):
                log.info(event, model=model, **{key: value for key, value in data.items() if value not in ("", None)})
                self._notices.publish(topic, event, model, data)
            case Remember(memory=kept):
                memory = Memory(active=kept.active, resident=list(kept.resident), pinned=list(kept.pinned))
                self._write(lambda: self._registry.remember(memory))
            case Learn(model=model, lessons=lessons):
                self._learn(model, lessons)
            case AskServer(server=server, at=at):
                self._ask_server(server, at)
            case TrimCaches():
                self._trim()
            case Exit():
                self._on_exit()
            case _:
                assert_never(effect)

    def _refuse(self, call: Call, fault: Fault) -> None:
        if not self._otherwise(call, fault):
            self._calls.error(call, fault)

    def _pin_told(self, request: int, pin: Pinned) -> None:
        """Answer a pin once all writes before are done: who hears of it may rely on it."""

        def told(_: "asyncio.Future[None]") -> None:
            try:
                self._with(request, lambda call: self._calls.reply(call, pin))
            except Exception:  # as in any other effect
                log.exception("effect.failed", effect=f"the answer to pinning {pin.model}")
                self._apologize(request)

        asyncio.get_running_loop().run_in_executor(self._disk, lambda: None).add_done_callback(told)

    def _learn(self, model: str, lessons: tuple[Lesson, ...]) -> None:
        """Keep with a model what its loads were measured to take."""
        manifest = msgspec.structs.replace(self._manifests[model], lessons=list(lessons))
        self._manifests[model] = manifest
        if not manifest.remote:
            self._write(lambda: self._registry.put(manifest))

    def _forget(self, request: int, model: str) -> None:
        """Take a model out of the store; its client hears of it when that is done, or why it is not."""
        manifest = self._manifests.pop(model)

        def told(done: "asyncio.Future[None]") -> None:
            try:
                done.result()
                self._with(request, lambda call: self._calls.reply(call, Removed(model, manifest.path)))
            except OSError as error:
                log.error("state.not_written", error=str(error))  # noqa: TRY400 - expected
                what = f"cannot remove {model} for good: its manifest cannot be deleted, and counts at the next start"
                self._with(request, lambda call: self._calls.error(call, Fault("state_not_written", what)))
            except Exception:  # as in any other effect
                log.exception("effect.failed", effect=f"the end of removing {model}")
                self._apologize(request)

        asyncio.get_running_loop().run_in_executor(self._disk, self._registry.remove, model).add_done_callback(told)

    def _complete(self, request: int) -> None:
        call = self._calls.get(request)
        if call is None:
            return
        if call.result is None or call.order is None:
            self._calls.error(call, Fault("internal", "cannot find the worker's result"))
            return
        self._calls.reply(call, results.reply(call, call.order, call.result))

    def _with(self, request: int, act: Callable[[Call], None]) -> None:
        """Act on a call if it is still there; requests of the daemon itself have none."""
        if (call := self._calls.get(request)) is not None:
            act(call)

    def _write(self, work: Callable[[], None]) -> None:
        """Do a small write on the disk thread, in order; a full disk is logged, and costs nothing else."""
        self._disk.submit(work).add_done_callback(
            lambda done: (
                None if done.exception() is None else log.error("state.not_written", error=str(done.exception()))
            )
        )
