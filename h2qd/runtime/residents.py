"""Resident models as processes: what the core's worker effects do, and what the workers report as events.

Between a worker and the calls that it serves tokens pass here and nowhere else; the core hears only of the ends.
Memory is weighed (`scales`) after a load, before a stop, after the exit: so an unload is proved by what the process
tree holds less; and in between, as often as that costs next to nothing.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from h2qd.core.events import Event, GenerationEnded, WorkerExited, WorkerMeasured, WorkerParked, WorkerReady
from h2qd.core.records import Fault, Terms
from h2qd.logs import get_logger
from h2qd.runtime.calls import Calls
from h2qd.runtime.containment import Containers
from h2qd.runtime.elsewhere import Elsewhere
from h2qd.runtime.engines import Engines
from h2qd.runtime.results import logprobs
from h2qd.runtime.scales import Scales, Weights
from h2qd.runtime.workers import Exit, Patience, Worker
from h2qd.runtime.zygote import Zygote
from h2qd.store.registry import Manifest
from h2qd.wire.codes import CODES
from h2qd.wire.names import shown
from h2qd.wire.workers import (
    CancelGeneration,
    Detokenized,
    Embedded,
    ForgetSession,
    FromWorker,
    Generated,
    GenerationFailed,
    HeldElsewhere,
    Loaded,
    Loading,
    Parked,
    ParkModel,
    Prefilling,
    Result,
    Scored,
    SessionsSaved,
    Text,
    Tokenized,
)

log = get_logger()

_WEIGHING_SHARE = 0.01
"""Of the time, spent on weighing workers again and again: their page tables are locked meanwhile."""

_NEWS_BYTES = 2**20
"""What a worker holds more or less, before the core hears of it."""

_FULL_SHARE = 0.9
"""A request that filled so much of its context has touched nearly all the memory that any will."""


_REASON_CHARS_MAX = 200
"""Of why there is no draft, as clients hear it."""


@dataclass(slots=True, eq=False)
class _Resident:
    """A worker with its model, and what was measured of it. `before`: the tree before it was told to stop or park.

    `elsewhere_bytes`: what a server on this device holds for it, `elsewhere_before` the same before it was told.
    """

    worker: Worker
    model: str
    before: Weights | None = None
    stop_began: float = 0.0
    fraction: float = 0.0
    device: str = "cpu"
    ctx: int = 0
    held_bytes: int = 0
    elsewhere_bytes: int = 0
    elsewhere_before: int = 0
    exercised: bool = False
    told_exercised: bool = False
    ready: bool = False
    parked: bool = False
    tokens: int = 0
    tokens_at: float = 0.0
    tokens_per_s: float = 0.0


class Residents:
    """The workers that hold models, by the core's worker numbers."""

    def __init__(
        self,
        zygote: Zygote,
        containers: Containers,
        patience: Patience,
        calls: Calls,
        post: Callable[[Event], None],
        scales: Scales,
        look: Callable[[], None],
        engines: Engines,
        elsewhere: Elsewhere,
    ) -> None:
        self._zygote = zygote
        self._containers = containers
        self._patience = patience
        self._calls = calls
        self._post = post
        self._scales = scales
        self._look = look
        self._engines = engines
        self._elsewhere = elsewhere
        self._residents: dict[int, _Resident] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._weighing = False
        self._weigh_at = 0.0

    # --- effects ----------------------------------------------------------------------------------

    def start(
        self,
        number: int,
        manifest: Manifest,
        terms: Terms,
        slots: int,
        gpu_layers: int,
        draft: Manifest | None = None,
    ) -> None:
        """Start worker `number` and have it load a model on `terms`, within its plan and a margin.

        `draft` is the model that `terms` name so.
        """
        order = self._engines.load_order(manifest, terms, slots, gpu_layers, draft)
        elsewhere = terms.file_bytes if manifest.remote else 0  # is in no process of ours
        container = self._containers.contain(number, terms.planned_bytes - elsewhere)
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
        self._residents[number] = _Resident(worker, manifest.name)

    def resume(self, number: int, terms: Terms, slots: int, draft: Manifest | None = None) -> None:
        """Have a parked worker make a context on `terms`, and one for its draft."""
        resident = self._residents.get(number)
        if resident is None:
            return  # it is gone: its exit is on its way to the core
        resident.fraction, resident.parked = 0.0, False
        order = self._engines.resume_order(terms, slots, draft)
        resident.worker.resume(order, terms.planned_bytes)

    def park(self, number: int) -> None:
        """Have a worker free its context."""
        if (resident := self._residents.get(number)) is not None:
            resident.stop_began = time.monotonic()
            resident.ready = False
            self._spawn(self._measure_and_park(resident))

    async def _measure_and_park(self, resident: _Resident) -> None:
        resident.before = await self._scales.weigh()
        resident.stop_began = time.monotonic()
        resident.worker.park(ParkModel())

    async def _parked(self, resident: _Resident) -> None:
        """Weigh what parking gave back, and what of the rest the kernel could not take."""
        took_s = time.monotonic() - resident.stop_began
        weights = await self._scales.weigh()
        resident.worker.settled()
        freed = weights.freed_bytes(resident.worker.pid, resident.before) if resident.before is not None else 0
        resident.parked, resident.before = True, None
        resident.held_bytes = weights.kept_bytes(resident.worker.pid)
        self._look()
        number = resident.worker.number
        if number in self._residents:
            self._post(WorkerParked(self._now(), number, resident.held_bytes, freed, took_s))

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
        if at_once or not (resident.ready or resident.parked):
            resident.worker.stop(at_once=at_once)
        else:
            self._spawn(self._measure_and_stop(resident))

    async def _measure_and_stop(self, resident: _Resident) -> None:
        resident.before = await self._scales.weigh()
        resident.elsewhere_before = resident.elsewhere_bytes
        resident.stop_began = time.monotonic()
        resident.worker.stop(save=True)

    def forget(self, session: str, model: str | None) -> None:
        """Have no worker, or none of `model`, keep anything of a session."""
        for resident in self._residents.values():
            if model in (None, resident.model):
                resident.worker.send(ForgetSession(session))

    def generate(self, request: int, number: int) -> None:
        """Hand a granted request to its worker."""
        resident, call = self._residents.get(number), self._calls.get(request)
        if resident is None or call is None or call.order is None:
            self._post(GenerationEnded(self._now(), request, Fault("internal", "cannot find the request's order")))
            return
        if (
            fault := self._engines.adapters.lack(resident.model, call.order)
        ) is not None:  # a variant may have others
            self._post(GenerationEnded(self._now(), request, fault))
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

    def limit_bytes(self, number: int) -> int | None:
        """Where the kernel ends a worker."""
        resident = self._residents.get(number)
        return resident.worker.limit_bytes if resident is not None else None

    def tokens_per_s(self, number: int) -> float:
        """How fast a worker answered lately, over all of its requests."""
        resident = self._residents.get(number)
        if resident is None or time.monotonic() - resident.tokens_at > _RATE_S_MAX:
            return 0.0
        return resident.tokens_per_s

    def device(self, number: int) -> str:
        """Where a worker's model computes."""
        resident = self._residents.get(number)
        return resident.device if resident is not None else "cpu"

    # --- what workers say -------------------------------------------------------------------------

    def _take(self, number: int, message: FromWorker) -> None:  # noqa: C901 - one flat list of messages
        resident = self._residents[number]
        match message:
            case Text(request=request, tokens=tokens):
                self._text(request, message)
                _count(resident, tokens)
            case Generated() | Embedded() | Scored() | Tokenized() | Detokenized():
                self._ended(resident, message)
            case SessionsSaved():
                self._saved(resident, message)
            case HeldElsewhere():
                self._held_elsewhere(resident, message)
            case GenerationFailed(request=request, code=code, message=text, away=away):
                known = code if code in CODES else "generation_failed"
                self._post(GenerationEnded(self._now(), request, Fault(known, shown(text, 1000), away=away)))
            case Prefilling(request=request, done=done, total=total):
                if (call := self._calls.get(request)) is not None and total > 0:
                    call.prefilled = min(1.0, done / total)
            case Loading(fraction=fraction):
                resident.fraction = min(1.0, max(0.0, fraction))
            case Loaded():
                self._spawn(self._loaded(resident, message))
            case Parked():
                self._spawn(self._parked(resident))
            case _:
                log.warning("worker.said_nonsense", worker=number, said=type(message).__name__)

    def _text(self, request: int, text: Text) -> None:
        call = self._calls.get(request)
        if call is not None and call.text is not None:
            call.text.add(text.text, text.tokens, logprobs(text.logprobs), text.thinking)
            self._calls.pump(call)

    def _ended(self, resident: _Resident, result: Result) -> None:
        call = self._calls.get(result.request)
        if call is not None:
            call.result = result
        if isinstance(result, Generated):
            used = result.prompt_tokens + result.completion_tokens
            resident.exercised = resident.exercised or used >= resident.ctx * _FULL_SHARE
        self._post(GenerationEnded(self._now(), result.request))

    def _held_elsewhere(self, resident: _Resident, held: HeldElsewhere) -> None:
        log.info(
            "remote.memory",
            model=resident.model,
            bytes=held.elsewhere_bytes,
            before=resident.elsewhere_bytes,
        )
        if resident.ready:
            resident.held_bytes += held.elsewhere_bytes - resident.elsewhere_bytes
            self._post(WorkerMeasured(self._now(), resident.worker.number, max(0, resident.held_bytes)))
        resident.elsewhere_bytes = held.elsewhere_bytes
        self._elsewhere.heard(resident.model.partition("/")[0], held.running)
        self._look()

    @staticmethod
    def _saved(resident: _Resident, saved: SessionsSaved) -> None:
        level = log.warning if saved.failed else log.info
        level(
            "sessions.saved",
            model=resident.model,
            saved=saved.saved,
            failed=saved.failed,
            bytes=saved.size_bytes,
            ms=round(saved.took_ms, 1),
            why=shown(saved.why, 300) or None,
        )

    async def _loaded(self, resident: _Resident, loaded: Loaded) -> None:
        resident.worker.settled()
        resident.device = shown(loaded.device, 32)
        resident.ctx = loaded.ctx
        weights = await self._scales.weigh()
        resident.ready = True
        resident.exercised = resident.told_exercised = False
        number = resident.worker.number
        resident.elsewhere_bytes = loaded.elsewhere_bytes
        resident.held_bytes = weights.held_bytes(resident.worker.pid) + resident.elsewhere_bytes
        file_bytes = weights.file_bytes(resident.worker.pid)
        self._post(WorkerMeasured(self._now(), number, resident.held_bytes, file_bytes=file_bytes))
        self._look()  # between the two: so the reading is known to have the load in it
        load_s, undrafted = loaded.load_ms / 1000, shown(loaded.undrafted, _REASON_CHARS_MAX)
        if undrafted:
            log.warning("draft.unavailable", model=resident.model, why=undrafted)
        self._post(WorkerReady(self._now(), number, loaded.ctx, resident.held_bytes, load_s, file_bytes, undrafted))

    def _exited(self, number: int, end: Exit) -> None:
        self._spawn(self._prove(self._residents[number], end))

    async def _prove(self, resident: _Resident, end: Exit) -> None:
        """Measure what the tree holds less, then tell the core that the worker is gone."""
        took_s = time.monotonic() - resident.stop_began if resident.stop_began else 0.0
        del self._residents[resident.worker.number]
        after, before, pid = await self._scales.weigh(), resident.before or Weights(), resident.worker.pid
        held = before.held_bytes(pid) + resident.elsewhere_before
        fault = end.fault or Fault("worker_crashed", f"cannot go on: the process of {resident.model} went")
        freed = after.freed_bytes(pid, before) + max(0, resident.elsewhere_before - resident.elsewhere_bytes)
        self._look()
        self._post(WorkerExited(self._now(), resident.worker.number, fault, held, freed, took_s))

    # --- measuring --------------------------------------------------------------------------------

    def learn_idle(self) -> None:
        """Weigh the tree while nothing runs in it: what workers share with the zygote is told from that."""
        self._spawn(self._scales.learn_idle())

    def weigh(self) -> None:
        """Weigh all workers again, unless that was done so lately that it would cost too much. Called each second."""
        ready = any(resident.ready for resident in self._residents.values())
        if ready and not self._weighing and time.monotonic() >= self._weigh_at:
            self._weighing = True
            self._spawn(self._weigh())

    async def _weigh(self) -> None:
        try:
            weights = await self._scales.weigh()
        finally:
            self._weighing = False
        self._weigh_at = time.monotonic() + weights.took_s / _WEIGHING_SHARE
        for number, resident in list(self._residents.items()):
            held = weights.held_bytes(resident.worker.pid) + resident.elsewhere_bytes
            news = abs(held - resident.held_bytes) >= _NEWS_BYTES or resident.exercised != resident.told_exercised
            if resident.ready and held and news:
                resident.held_bytes, resident.told_exercised = held, resident.exercised
                file_bytes = weights.file_bytes(resident.worker.pid)
                self._post(WorkerMeasured(self._now(), number, held, resident.exercised, file_bytes))

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


_RATE_S_MIN = 0.5
_RATE_S_MAX = 3.0
"""A rate is of the tokens of at least, and is shown for at most, so long."""


def _count(resident: _Resident, tokens: int) -> None:
    """More tokens were decoded."""
    now = time.monotonic()
    passed_s = now - resident.tokens_at
    if passed_s > _RATE_S_MAX:
        resident.tokens, resident.tokens_at, resident.tokens_per_s = tokens, now, 0.0
        return
    resident.tokens += tokens
    if passed_s >= _RATE_S_MIN:
        resident.tokens_per_s = resident.tokens / passed_s
        resident.tokens, resident.tokens_at = 0, now
