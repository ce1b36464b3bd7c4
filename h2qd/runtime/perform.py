"""Effects performed: each of the core's decisions handed to the adapter that carries it out."""

import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import assert_never

from h2qd.core.effects import (
    ClearTimer,
    Complete,
    Effect,
    Exit,
    Publish,
    Refuse,
    Remember,
    SetTimer,
    StartGeneration,
    StartWorker,
    StopGeneration,
    StopWorker,
    TellCold,
    TellForgotten,
    TellResident,
)
from h2qd.core.records import Fault
from h2qd.logs import get_logger
from h2qd.runtime.calls import Call, Calls
from h2qd.runtime.notices import Notices
from h2qd.runtime.residents import Residents
from h2qd.runtime.timers import Timers
from h2qd.runtime.views import answer, released, residency
from h2qd.store.registry import Manifest, Memory, Registry
from h2qd.wire.messages import Removed, Unloaded

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
        threads: int,
        on_exit: Callable[[], None],
    ) -> None:
        self._calls = calls
        self._residents = residents
        self._notices = notices
        self._timers = timers
        self._registry = registry
        self._manifests = manifests
        self._disk = disk
        self._threads = threads
        self._on_exit = on_exit

    def __call__(self, effect: Effect) -> None:  # noqa: C901, PLR0912 - one flat list of effects
        """Perform one effect. Nothing here waits."""
        match effect:
            case StartWorker(worker=worker, model=model, ctx=ctx):
                self._residents.start(worker, self._manifests[model], ctx, self._threads)
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
            case TellCold(request=request, model=model):
                told = None if effect.released is None else released(effect.released)
                body = Unloaded(model, told is not None, told)
                self._with(request, lambda call: self._calls.reply(call, body))
            case TellForgotten(request=request, model=model):
                self._forget(request, model)
            case Refuse(request=request, fault=fault):
                self._with(request, lambda call: self._calls.error(call, fault))
            case SetTimer(timer=timer, at=at):
                self._timers.set(timer, at)
            case ClearTimer(timer=timer):
                self._timers.clear(timer)
            case Publish(topic=topic, event=event, model=model, data=data):
                log.info(event, model=model, **{key: value for key, value in data.items() if value not in ("", None)})
                self._notices.publish(topic, event, model, data)
            case Remember(active=active):
                self._write(lambda: self._registry.remember(Memory(active=active)))
            case Exit():
                self._on_exit()
            case _:
                assert_never(effect)

    def _forget(self, request: int, model: str) -> None:
        manifest = self._manifests.pop(model)
        self._write(lambda: self._registry.remove(model))
        self._with(request, lambda call: self._calls.reply(call, Removed(model, manifest.path)))

    def _complete(self, request: int) -> None:
        call = self._calls.get(request)
        if call is None:
            return
        if call.result is None or call.order is None:
            self._calls.error(call, Fault("internal", "cannot find the worker's result"))
            return
        body = answer(call, call.order, call.result, time.monotonic())
        call.notes.update(
            finish=body.finish, prompt_tokens=body.usage.prompt_tokens, completion_tokens=body.usage.completion_tokens
        )
        self._calls.reply(call, body)

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
