"""Resident models as processes: what the core's worker effects do, and what the workers report as events.

Between a worker and the calls that it serves tokens pass here and nowhere else; the core hears only of the ends.
Memory is measured off the loop, as PSS of the zygote and all workers (the supervisor's own is not what a load
takes): while nothing is resident, after a load, before a stop, after the exit. So an unload is proved by what
this tree holds less.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass

from h2qd.core.events import Event, GenerationEnded, WorkerExited, WorkerMeasured, WorkerReady
from h2qd.core.records import Fault
from h2qd.logs import get_logger
from h2qd.runtime.calls import Calls
from h2qd.runtime.containment import Containers
from h2qd.runtime.workers import Exit, Patience, Worker
from h2qd.runtime.zygote import Zygote
from h2qd.store.registry import Manifest
from h2qd.wire.codes import CODES
from h2qd.wire.names import shown
from h2qd.wire.workers import (
    CancelGeneration,
    FromWorker,
    Generated,
    GenerationFailed,
    Loaded,
    Loading,
    LoadModel,
    Prefilling,
    Text,
)

log = get_logger()

_MEASURE_S_MAX = 2.0
"""A page table that is locked for this long, by a disk that does not answer, is not waited for."""

_SETTLED_S = 5.0
"""At most this often a busy model is measured again."""


@dataclass(slots=True, eq=False)
class _Resident:
    """A worker with its model. `tree_before` is what the process tree held before the load, in bytes."""

    worker: Worker
    model: str
    tree_before: int
    tree_stopped: int = 0
    stop_began: float = 0.0
    fraction: float = 0.0
    device: str = "cpu"
    measured_at: float = 0.0
    ready: bool = False


class Residents:
    """The workers that hold models, by the core's worker numbers."""

    def __init__(
        self,
        zygote: Zygote,
        containers: Containers,
        patience: Patience,
        calls: Calls,
        post: Callable[[Event], None],
        measure: Callable[[Iterable[int]], int],
        meter: Executor,
    ) -> None:
        self._zygote = zygote
        self._containers = containers
        self._patience = patience
        self._calls = calls
        self._post = post
        self._measure = measure
        self._meter = meter
        self._residents: dict[int, _Resident] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._tree_idle = 0

    # --- effects ----------------------------------------------------------------------------------

    def start(self, number: int, manifest: Manifest, ctx: int, threads: int, planned_bytes: int) -> None:
        """Start worker `number` and have it load a model, within `planned_bytes` and a margin."""
        order = LoadModel(manifest.backend, manifest.path, ctx, threads, manifest.identity)
        container = self._containers.contain(number, planned_bytes)
        try:
            worker = Worker(
                number,
                manifest.name,
                order,
                self._zygote,
                self._patience,
                lambda message: self._take(number, message),
                lambda end: self._exited(number, end),
                container,
            )
        except OSError as error:
            container.close()
            log.error("worker.not_started", worker=number, model=manifest.name, error=str(error))  # noqa: TRY400 - expected
            self.not_started(number, manifest.name, error.strerror or "the system refuses")
            return
        self._residents[number] = _Resident(worker, manifest.name, self._tree_idle)

    def not_started(self, number: int, model: str, why: str) -> None:
        """Report a worker that could not be started."""
        fault = Fault("load_failed", f"cannot load {model}: no process can be started for it ({why})")
        self._post(WorkerExited(self._now(), number, fault))

    def not_generated(self, request: int) -> None:
        """Report a request that could not be handed to its worker."""
        fault = Fault("internal", "cannot hand the request to the model's process: a defect, see the log")
        self._post(GenerationEnded(self._now(), request, fault))

    def kill(self, number: int) -> None:
        """Have a worker go at once, unmeasured."""
        if (resident := self._residents.get(number)) is not None:
            resident.worker.stop(at_once=True)

    def stop(self, number: int, *, at_once: bool) -> None:
        """Have a worker go; the tree is measured first, unless there is no time for that."""
        resident = self._residents.get(number)
        if resident is None:
            return
        resident.stop_began = time.monotonic()
        if at_once or not resident.ready:
            resident.worker.stop(at_once=at_once)
        else:
            self._spawn(self._measure_and_stop(resident))

    async def _measure_and_stop(self, resident: _Resident) -> None:
        resident.tree_stopped = await self._tree()
        resident.stop_began = time.monotonic()
        resident.worker.stop()

    def generate(self, request: int, number: int) -> None:
        """Hand a granted request to its worker."""
        resident, call = self._residents.get(number), self._calls.get(request)
        if resident is None or call is None or call.order is None:
            self._post(GenerationEnded(self._now(), request, Fault("internal", "cannot find the request's order")))
            return
        call.granted = time.monotonic()
        resident.worker.send(call.order)

    def cancel(self, request: int, number: int) -> None:
        """Have a worker let go of a request."""
        if (resident := self._residents.get(number)) is not None:
            resident.worker.send(CancelGeneration(request))

    def close(self) -> None:
        """Kill what is left."""
        for resident in self._residents.values():
            resident.worker.stop(at_once=True)
        for task in self._tasks:
            task.cancel()

    # --- looking ----------------------------------------------------------------------------------

    def fraction(self, number: int) -> float:
        """How far a load is, 0..1."""
        resident = self._residents.get(number)
        return resident.fraction if resident is not None else 0.0

    def pid(self, number: int) -> int | None:
        """A worker's process."""
        resident = self._residents.get(number)
        return resident.worker.pid if resident is not None else None

    def device(self, number: int) -> str:
        """Where a worker's model computes."""
        resident = self._residents.get(number)
        return resident.device if resident is not None else "cpu"

    # --- what workers say -------------------------------------------------------------------------

    def _take(self, number: int, message: FromWorker) -> None:
        resident = self._residents[number]
        match message:
            case Text(request=request, text=text, tokens=tokens):
                self._text(request, text, tokens)
            case Generated(request=request):
                self._ended(resident, request, message)
            case GenerationFailed(request=request, code=code, message=text):
                known = code if code in CODES else "generation_failed"
                self._post(GenerationEnded(self._now(), request, Fault(known, shown(text, 1000))))
            case Prefilling(request=request, done=done, total=total):
                if (call := self._calls.get(request)) is not None and total > 0:
                    call.prefilled = min(1.0, done / total)
            case Loading(fraction=fraction):
                resident.fraction = min(1.0, max(0.0, fraction))
            case Loaded():
                self._spawn(self._loaded(resident, message))
            case _:
                log.warning("worker.said_nonsense", worker=number, said=type(message).__name__)

    def _text(self, request: int, text: str, tokens: int) -> None:
        call = self._calls.get(request)
        if call is not None and call.text is not None:
            call.text.add(text, tokens)
            self._calls.pump(call)

    def _ended(self, resident: _Resident, request: int, result: Generated) -> None:
        call = self._calls.get(request)
        if call is not None:
            call.result = result
        self._post(GenerationEnded(self._now(), request))
        if time.monotonic() - resident.measured_at >= _SETTLED_S:
            resident.measured_at = time.monotonic()
            self._spawn(self._remeasure(resident))

    async def _loaded(self, resident: _Resident, loaded: Loaded) -> None:
        resident.worker.settled()
        resident.device = shown(loaded.device, 32)
        resident.fraction = 1.0
        tree = await self._tree()
        resident.ready = True
        resident.measured_at = time.monotonic()
        held = max(0, tree - resident.tree_before)
        number = resident.worker.number
        self._post(WorkerReady(self._now(), number, loaded.ctx, held, loaded.load_ms / 1000))

    async def _remeasure(self, resident: _Resident) -> None:
        tree = await self._tree()
        held = max(0, tree - resident.tree_before)
        if resident.worker.number in self._residents:
            self._post(WorkerMeasured(self._now(), resident.worker.number, held))

    def _exited(self, number: int, end: Exit) -> None:
        self._spawn(self._prove(self._residents[number], end))

    async def _prove(self, resident: _Resident, end: Exit) -> None:
        """Measure what the tree holds less, then tell the core that the worker is gone."""
        took_s = time.monotonic() - resident.stop_began if resident.stop_began else 0.0
        del self._residents[resident.worker.number]
        after = await self._tree()
        before = resident.tree_stopped or after
        held = max(0, before - resident.tree_before)
        fault = end.fault or Fault("worker_crashed", f"cannot go on: the process of {resident.model} went")
        freed = max(0, before - after)
        self._post(WorkerExited(self._now(), resident.worker.number, fault, held, freed, took_s))

    # --- measuring --------------------------------------------------------------------------------

    def learn_idle(self) -> None:
        """Measure the tree while nothing runs in it: what loads are counted from."""
        self._spawn(self._learn_idle())

    async def _learn_idle(self) -> None:
        tree = await self._tree()
        if tree and self._zygote.childless:  # a worker forked meanwhile would share pages, and halve what was read
            self._tree_idle = tree

    async def _tree(self) -> int:
        """What the process tree holds; 0 when that cannot be read, which must keep nothing else from happening."""
        try:
            async with asyncio.timeout(_MEASURE_S_MAX):
                return await asyncio.get_running_loop().run_in_executor(self._meter, self._measure, self._zygote.pids)
        except (OSError, RuntimeError) as error:  # TimeoutError is an OSError; RuntimeError: no thread can be started
            log.error("memory.not_measured", error=str(error))  # noqa: TRY400 - its place is known
            return 0

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("residents.task_failed", error=repr(error), exc_info=error)
