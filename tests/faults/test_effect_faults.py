"""Every effect fails once, and for good, at every place of a long scenario: nobody is answered twice or left waiting.

The core, the supervisor, the performer and the table of calls are real; the adapters behind them are fakes whose
n-th call raises, for n = 1, 2, … until the scenario runs through without a failure.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from h2qd.core.budget import charged
from h2qd.core.effects import Timer
from h2qd.core.events import (
    Event,
    ForgetAsked,
    GenerationEnded,
    LimitRead,
    MemoryRead,
    ModelRegistered,
    PinAsked,
    RequestAbandoned,
    RequestArrived,
    StopAsked,
    TimerFired,
    WorkerExited,
    WorkerParked,
    WorkerReady,
)
from h2qd.core.plan import ModelShape
from h2qd.core.records import Fault, Rules, Terms, Ticket, Want
from h2qd.core.states import HOLDING
from h2qd.runtime.calls import Call, Calls
from h2qd.runtime.notices import Notices
from h2qd.runtime.perform import Performer
from h2qd.runtime.residents import Residents
from h2qd.runtime.server import Client, Server
from h2qd.runtime.streams import TextOutlet
from h2qd.runtime.supervisor import Supervisor
from h2qd.runtime.timers import Timers
from h2qd.store.registry import Manifest, Registry
from h2qd.wire.frames import Kind, Request, split_response
from h2qd.wire.messages import ModelFacts
from h2qd.wire.workers import Generate, Generated, Sampler

MIB = 2**20
OPS = {Want.INFER: "infer.text", Want.RESIDENT: "model.load", Want.COLD: "model.unload"}


@dataclass
class Fuse:
    """Blows at the `at`-th call, and, `for_good`, at every one after it."""

    at: int
    for_good: bool
    calls: int = 0

    def burn(self, what: str) -> None:
        self.calls += 1
        if self.calls == self.at or (self.for_good and self.calls > self.at):
            raise RuntimeError(f"{what} failed by order of the test")

    @property
    def blown(self) -> bool:
        return self.calls >= self.at


class Fused:
    """An adapter of which the named methods burn a fuse before they do anything."""

    def __init__(self, adapter: object, fuse: Fuse, *names: str) -> None:
        self._adapter = adapter
        self._fuse = fuse
        self._names = names

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._adapter, name)
        if name not in self._names:
            return method

        def burning(*positional: Any, **named: Any) -> Any:
            self._fuse.burn(name)
            return method(*positional, **named)

        return burning


@dataclass
class Workers:
    """Workers that do what they are told, when the world lets them. Stands in for `Residents`."""

    world: "World"
    alive: set[int] = field(default_factory=set)
    started: int = 0
    resumed: int = 0

    def start(
        self, worker: int, manifest: Manifest, terms: Terms, slots: int, layers: int, draft: Manifest | None
    ) -> None:
        assert manifest.name
        assert (slots, layers, draft) == (1, 0, None)
        self.alive.add(worker)
        self.started += 1
        self._ready(worker, terms)

    def resume(self, worker: int, terms: Terms, slots: int, draft: Manifest | None) -> None:
        assert (slots, draft) == (1, None)
        self.resumed += 1
        self._ready(worker, terms)

    def _ready(self, worker: int, terms: Terms) -> None:
        held = terms.planned_bytes + MIB  # more than planned, so that there is something to learn
        self.world.later(lambda now: WorkerReady(now, worker, terms.ctx, held, 0.1) if worker in self.alive else None)

    def park(self, worker: int) -> None:
        self.world.later(lambda now: WorkerParked(now, worker, MIB, MIB, 0.1) if worker in self.alive else None)

    def stop(self, worker: int, *, at_once: bool) -> None:
        assert at_once in (True, False)
        self._end(worker, Fault("worker_crashed", "cannot go on: it went"))

    def kill(self, worker: int) -> None:
        self._end(worker, Fault("worker_crashed", "cannot go on: it was killed"))

    def _end(self, worker: int, fault: Fault) -> None:
        if worker in self.alive:
            self.alive.remove(worker)
            self.world.later(lambda now: WorkerExited(now, worker, fault))

    def not_started(self, worker: int, model: str, why: str) -> None:
        assert why
        self.world.supervisor.post(WorkerExited(self.world.now, worker, Fault("load_failed", f"cannot load {model}")))

    def generate(self, request: int, worker: int) -> None:
        call = self.world.calls.get(request)
        assert call is not None
        call.result = Generated(request, "stop", 1, 1, 0, 1.0, 1.0, 1.0)
        self.world.later(lambda now: GenerationEnded(now, request) if worker in self.alive else None)

    def not_generated(self, request: int) -> None:
        self.world.supervisor.post(GenerationEnded(self.world.now, request, Fault("internal", "cannot hand it on")))

    def cancel(self, request: int, worker: int) -> None:
        assert worker
        self.world.later(lambda now: GenerationEnded(now, request))


class Immediately(Executor):
    """Runs what is submitted at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except RuntimeError as error:
            future.set_exception(error)
        return future


class Clock:
    """Timers that fire when the world has nothing else to do."""

    def __init__(self) -> None:
        self.pending: dict[Timer, float] = {}

    def set(self, timer: Timer, at: float) -> None:
        self.pending[timer] = at

    def clear(self, timer: Timer) -> None:
        self.pending.pop(timer, None)


class Disk:
    """Takes all that is written."""

    def remember(self, memory: object) -> None:
        assert memory

    def remove(self, name: str) -> None:
        assert name

    def put(self, manifest: Manifest) -> None:
        assert manifest.lessons


class World:
    """A supervisor among fakes. `answers` holds what each request heard at its end."""

    def __init__(self, fuse: Fuse, rules: Rules) -> None:
        self.now = 0.0
        self.answers: dict[int, list[str]] = {}
        self.ended = 0
        self._later: deque[Callable[[float], Event | None]] = deque()
        self._client = Client(1, b"one", 0, 1)
        self.calls = Calls(lambda _: None)
        self.calls.server = cast("Server", self)
        self.clock = Clock()
        self.workers = Workers(self)
        self.supervisor = Supervisor(rules, checks=True)
        manifests = {name: _manifest(name) for name in ("a", "b")}
        fused_workers = Fused(self.workers, fuse, "start", "stop", "park", "resume", "generate", "cancel")
        self.supervisor.perform = Performer(
            cast("Calls", Fused(self.calls, fuse, "reply", "error")),
            cast("Residents", fused_workers),
            cast("Notices", Fused(Notices(self.calls), fuse, "publish")),
            cast("Timers", Fused(self.clock, fuse, "set", "clear")),
            cast("Registry", Fused(Disk(), fuse, "remember", "remove", "put")),
            manifests,
            Immediately(),
            lambda: fuse.burn("trim"),
            self._exit,
            lambda _call, _fault: False,
            lambda _server, _at: fuse.burn("ask"),
        )
        self.post(LimitRead(0.0, 2**40))
        for name in manifests:
            self.post(ModelRegistered(0.0, name, ModelShape(context_length=64), 64))

    def send(self, client: Client, frames: list[bytes]) -> bool:
        """What `Calls` tells its server to send."""
        assert client is self._client
        response, _ = split_response(frames)
        if response.kind in (Kind.REPLY, Kind.ERROR):
            self.answers.setdefault(response.id, []).append(response.kind.value)
        return True

    def _exit(self) -> None:
        self.ended += 1

    def later(self, event: Callable[[float], Event | None]) -> None:
        self._later.append(event)

    def post(self, event: Event) -> None:
        self.supervisor.post(event)

    def open(self, op: str) -> Call:
        """A call of the client, whose envelope id is its number."""
        number = len(self.answers)
        self.answers[number] = []
        return self.calls.open(self._client, Request(1, number, op))

    def pin(self, model: str, *, pinned: bool) -> None:
        op = "model.pin" if pinned else "model.unpin"
        self.post(PinAsked(self.now, self.open(op).number, model, pinned))

    def want(self, want: Want, model: str) -> Call:
        call = self.open(OPS[want])
        call.model = model
        if want is Want.INFER:
            call.order = Generate(call.number, 1, Sampler(0, 1, 1, 0, 1, 0, 1), "x")
            call.outlet = TextOutlet()
        self.post(RequestArrived(self.now, Ticket(call.number, 1, want, model, self.now, self.now + 500)))
        return call

    def turn(self) -> bool:
        """Let the oldest thing happen that is on its way. False: there was none."""
        if not self._later:
            return False
        self.now += 0.1
        event = self._later.popleft()(self.now)
        if event is not None:
            self.post(event)
        return True

    async def settle(self) -> None:
        """Let all happen that is on its way, timers too; then what callbacks are left."""
        while self.turn() or self._fire():
            pass
        for _ in range(3):
            await asyncio.sleep(0)

    def _fire(self) -> bool:
        if not self.clock.pending:
            return False
        timer = min(self.clock.pending, key=self.clock.pending.__getitem__)
        self.now = max(self.now, self.clock.pending.pop(timer))
        self.post(TimerFired(self.now, timer))
        return True


def _manifest(name: str) -> Manifest:
    return Manifest(
        name=name, path=f"/{name}", backend="fake", sha256="", identity=[], facts=ModelFacts(), imported_at_ms=0
    )


RULES = Rules(cancel_grace_s=1.0, backoff_first_s=0.0, backoff_max_s=0.0)
POLICIES = {
    "exclusive": RULES,
    "exclusive, parking": replace(RULES, park_s=60.0),
    "budget": replace(RULES, exclusive=False),
}


async def scenario(fuse: Fuse, rules: Rules = RULES) -> World:
    """Loads, answers, a switch under load and back, pins, a shortage of memory, a cancel, an unload, a removal."""
    world = World(fuse, rules)
    world.want(Want.RESIDENT, "a")
    world.want(Want.INFER, "a")
    await world.settle()
    for _ in range(3):
        world.want(Want.INFER, "a")
    world.want(Want.RESIDENT, "b")
    while world.turn():  # and no timer: a parked model is there still
        pass
    world.want(Want.RESIDENT, "a")
    await world.settle()
    world.pin("a", pinned=True)
    world.want(Want.RESIDENT, "b")
    await world.settle()
    world.pin("a", pinned=False)
    for used_share in (0.85, 0.95, 0.99, 0.2):
        world.now += 10.0
        world.post(MemoryRead(world.now, used_share, 2**40))
        await world.settle()
    world.now += 10.0
    world.post(MemoryRead(world.now, 0.2, 2**40))
    world.want(Want.RESIDENT, "b")
    await world.settle()
    cancelled = world.want(Want.INFER, "b")
    world.post(RequestAbandoned(world.now, cancelled.number, Fault("cancelled", "cannot go on")))
    await world.settle()
    world.want(Want.COLD, "b")
    await world.settle()
    removal = world.open("model.remove")
    world.post(ForgetAsked(world.now, removal.number, "b"))
    await world.settle()
    world.want(Want.RESIDENT, "b")
    abandoned = world.want(Want.RESIDENT, "a")
    world.post(RequestAbandoned(world.now, abandoned.number, Fault("cancelled", "cannot go on")))
    await world.settle()
    world.want(Want.INFER, "a")
    world.post(StopAsked(world.now, 10.0))
    await world.settle()
    return world


@pytest.mark.parametrize("policy", POLICIES)
def test_the_scenario_without_a_failure(policy: str) -> None:
    fuse = Fuse(10**6, for_good=False)
    world = asyncio.run(scenario(fuse, POLICIES[policy]))
    assert [len(heard) for heard in world.answers.values()] == [1] * len(world.answers)
    assert world.ended == 1
    assert not world.workers.alive
    assert fuse.calls > 60
    assert world.workers.started >= 3, "or this tests no load"
    assert (world.workers.resumed > 0) == (policy == "exclusive, parking")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
def test_the_nth_effect_fails(for_good: bool, policy: str) -> None:
    failures = 0
    for at in range(1, 1000):
        fuse = Fuse(at, for_good)
        world = asyncio.run(scenario(fuse, POLICIES[policy]))
        if not fuse.blown:
            break
        failures += 1
        heard = list(world.answers.values())
        assert all(len(ends) <= 1 for ends in heard), f"answered twice with effect {at} failing: {heard}"
        assert len(world.supervisor.state.waiting) == 0
        assert len(world.supervisor.state.running) == 0
        if not for_good:
            assert all(len(ends) == 1 for ends in heard), f"not answered with effect {at} failing: {heard}"
            assert world.ended == 1, f"the daemon does not end with effect {at} failing"
            assert not world.workers.alive
        models = world.supervisor.state.models.values()
        assert not any(model.status in HOLDING for model in models)
        assert charged(models) == 0, "the ledger does not balance"
    assert failures > 60
