"""A test of the core that reads as a script: what happens, then what the machine decides to do about it.

    (
        Playbook("a", "b")
        .given_ready("a")
        .when(load(1, "b"))
        .then(stop("a"))
        .when(gone("a"))
        .then(start("b"))
        .when(ready("b"))
        .then(remember("b"), resident(1, "b", was_active="a"))
        .states(a=Status.COLD, b=Status.READY)
    )

Every `when` takes one step of the real machine at the playbook's own time, and every invariant is checked after it.
`then` names all effects of that step in order, except timers and notices, which have their own checks (`timers`,
`notices`), and what is remembered or learned of anything else than the active model (`memory`); a step that is not
followed by a `then` must have had none. A `remember` comes first. Workers are spoken of by their model, because
their numbers carry no meaning. When a line does not hold, the AssertionError tells the whole story so far.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Self, TypeAlias

from h2qd.core.effects import (
    AskServer,
    ClearTimer,
    Clock,
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
    Timer,
    TrimCaches,
)
from h2qd.core.events import (
    Event,
    ForgetAsked,
    GenerationEnded,
    LimitRead,
    MemoryRead,
    ModelRegistered,
    PinAsked,
    Recalled,
    RequestAbandoned,
    RequestArrived,
    ServerAsked,
    StopAsked,
    TimerFired,
    WorkerExited,
    WorkerMeasured,
    WorkerParked,
    WorkerReady,
)
from h2qd.core.invariants import check
from h2qd.core.lessons import Lesson
from h2qd.core.machine import step
from h2qd.core.plan import ModelShape, memory_plan
from h2qd.core.records import F16, Fault, Kept, Rules, State, Ticket, Traits, Want
from h2qd.core.states import Status

MIB = 2**20
GIB = 2**30
CTX = 4096
"""The default context of every model of a playbook."""

HELD = GIB
"""What a worker of a playbook holds once it is ready, unless the script says otherwise."""

SHAPE = ModelShape(tensor_bytes=GIB, context_length=131072, layers=4, kv_heads=(8,), key_length=128, value_length=128)
"""A model of 1 GiB that takes 16 KiB more for each token of context."""


def plan_bytes(ctx: int = CTX, kv_type: str = F16, *, shape: ModelShape = SHAPE, slots: int = 1) -> int:
    """What a load of a playbook's model is planned with before anything was learned; `ctx` for each slot."""
    return memory_plan(shape, ctx * slots, slots, kv_type).total_bytes


def kept(*names: str) -> tuple[Kept, ...]:
    """Models as they are remembered when they were loaded on what they are registered with."""
    return tuple(Kept(name, CTX, F16) for name in names)


CRASH = Fault("worker_crashed", "cannot go on: the process died")
CANCELLED = Fault("cancelled", "cannot finish the request: it was cancelled")
LOAD_FAILED = Fault("load_failed", "cannot load the model: the file is truncated")


@dataclass(frozen=True)
class Scene:
    """What lines of a script may look up: the time, the state, the workers of each model, oldest first."""

    now: float
    state: State
    workers: Mapping[str, list[int]]
    timers: Mapping[Timer, float]

    def worker(self, model: str, nth: int = -1) -> int:
        """The number of a model's nth worker; by default its latest."""
        return self.workers[model][nth]


Cue: TypeAlias = Callable[[Scene], Event]
"""A line of `when`: the event, told from the scene."""

# --- what happens ------------------------------------------------------------------------------------


def infer(
    request: int,
    model: str = "",
    *,
    client: int = 1,
    deadline: float | None = None,
    ctx: int = 0,
    priority: int = 1,
) -> Cue:
    """A client wants an answer of a model; without a name, of the active one."""
    return lambda s: RequestArrived(
        s.now, Ticket(request, client, Want.INFER, model, s.now, deadline, ctx, priority=priority)
    )


def load(
    request: int,
    model: str = "",
    *,
    ctx: int = 0,
    force: bool = False,
    reset: bool = False,
    deadline: float | None = None,
    client: int = 1,
    kv_type: str = "",
    exact: bool = False,
    activate: bool = True,
    gentle: bool = False,
) -> Cue:
    """A client wants a model resident."""

    def cue(s: Scene) -> Event:
        ticket = Ticket(request, client, Want.RESIDENT, model, s.now, deadline, ctx, force, reset, kv_type, exact)
        return RequestArrived(s.now, replace(ticket, activate=activate, gentle=gentle))

    return cue


def unload(request: int, model: str, *, force: bool = False, client: int = 1) -> Cue:
    """A client wants a model cold."""
    return lambda s: RequestArrived(s.now, Ticket(request, client, Want.COLD, model, s.now, force=force))


def cancel(request: int, fault: Fault = CANCELLED) -> Cue:
    """A request is no longer wanted."""
    return lambda s: RequestAbandoned(s.now, request, fault)


def ready(model: str, *, ctx: int | None = None, held: int = HELD, nth: int = -1) -> Cue:
    """A worker has loaded its model, with the context that was asked for unless `ctx` says otherwise."""
    return lambda s: WorkerReady(
        s.now, s.worker(model, nth), s.state.models[model].terms.ctx if ctx is None else ctx, held, 0.5
    )


def measured(model: str, held: int, *, exercised: bool = False, nth: int = -1) -> Cue:
    """A worker was weighed."""
    return lambda s: WorkerMeasured(s.now, s.worker(model, nth), held, exercised)


def parked(model: str, held: int = HELD // 8) -> Cue:
    """A worker that was told to free its context has done so."""
    return lambda s: WorkerParked(s.now, s.worker(model), held, HELD - held, 0.05)


def read(used_share: float, available: int = 16 * GIB, *, stalled: bool = False) -> Cue:
    """The device's memory was read."""
    return lambda s: MemoryRead(s.now, used_share, available, stalled)


def accelerator(free_bytes: int) -> Cue:
    """The device was read: so much is free on its accelerator."""
    return lambda s: MemoryRead(s.now, 0.1, 16 * GIB, accelerator_bytes=free_bytes)


def pin(request: int, model: str, *, pinned: bool = True) -> Cue:
    """Somebody wants a model pinned, or not any more."""
    return lambda s: PinAsked(s.now, request, model, pinned)


def recalled(active: str | None, *pinned: str) -> Cue:
    """What was active and pinned when the daemon ended last."""
    return lambda s: Recalled(s.now, active, pinned)


def gone(model: str, *, nth: int = -1) -> Cue:
    """A worker that was told to go has gone, and gave everything back."""
    return lambda s: WorkerExited(s.now, s.worker(model, nth), Fault("unloaded", ""), HELD, HELD, 0.1)


def dies(model: str, fault: Fault = CRASH, *, nth: int = -1) -> Cue:
    """A worker is gone that was not told to go: it crashed, or could not load."""
    return lambda s: WorkerExited(s.now, s.worker(model, nth), fault)


def answered(request: int, fault: Fault | None = None) -> Cue:
    """A worker is done with a request."""
    return lambda s: GenerationEnded(s.now, request, fault)


def fires(clock: Clock) -> Cue:
    """The one timer of this kind that is set goes off; the playbook's time moves on to it first."""

    def cue(scene: Scene) -> Event:
        (timer,) = (t for t in scene.timers if t.clock is clock)
        return TimerFired(max(scene.now, scene.timers[timer]), timer)

    return cue


EXACT = Traits(degrade=False)
"""A model that is given what was asked for or nothing: of playbooks that are about something else."""


def registered(
    model: str,
    *,
    shape: ModelShape = SHAPE,
    ctx: int = CTX,
    traits: Traits = EXACT,
    lessons: tuple[Lesson, ...] = (),
    server: str = "",
) -> Cue:
    """A model is registered, or registered anew."""
    return lambda s: ModelRegistered(s.now, model, shape, ctx, traits, lessons, server)


def asked(server: str, fault: Fault | None = None) -> Cue:
    """A server told what it has, or did not."""
    return lambda s: ServerAsked(s.now, server, fault)


def forget(request: int, model: str) -> Cue:
    """Somebody wants a model off the list."""
    return lambda s: ForgetAsked(s.now, request, model)


def limit(limit_bytes: int) -> Cue:
    """The memory that models may hold was read."""
    return lambda s: LimitRead(s.now, limit_bytes)


def stop_asked(drain_s: float = 10.0) -> Cue:
    """The daemon is to end."""
    return lambda s: StopAsked(s.now, drain_s)


# --- what is to be done ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """An effect as a script names it: its kind, and the fields (dotted paths) that the script cares about."""

    kind: type[Effect]
    fields: Mapping[str, object] = field(default_factory=dict)
    worker_of: tuple[str, int] | None = None

    def matches(self, effect: Effect, scene: Scene) -> bool:
        """Whether an effect is the one that was meant."""
        if type(effect) is not self.kind or any(attrgetter(path)(effect) != v for path, v in self.fields.items()):
            return False
        if self.worker_of is None:
            return True
        model, nth = self.worker_of
        return model in scene.workers and attrgetter("worker")(effect) == scene.worker(model, nth)

    def __str__(self) -> str:
        named = [f"{path}={value!r}" for path, value in self.fields.items()]
        if self.worker_of is not None:
            named.append(f"worker of {self.worker_of[0]}")
        return f"{self.kind.__name__}({', '.join(named)})"


def start(model: str, ctx: int = CTX, gpu_layers: int = 0) -> Expected:
    """Start a worker for a model."""
    return Expected(StartWorker, {"model": model, "terms.ctx": ctx, "gpu_layers": gpu_layers}, (model, -1))


def resume(model: str, ctx: int = CTX) -> Expected:
    """Have a parked worker make a context."""
    return Expected(ResumeWorker, {"model": model, "terms.ctx": ctx}, (model, -1))


def parks(model: str) -> Expected:
    """Have a model's worker free its context."""
    return Expected(ParkWorker, {}, (model, -1))


def trims() -> Expected:
    """Give back what the daemon itself can do without."""
    return Expected(TrimCaches)


def learns(model: str) -> Expected:
    """Keep what a model's loads were measured to take."""
    return Expected(Learn, {"model": model})


def asks(server: str, at: float) -> Expected:
    """Ask a server what it has."""
    return Expected(AskServer, {"server": server, "at": at})


def pinned_told(request: int, model: str, *, pinned: bool = True, changed: bool = True) -> Expected:
    """Answer a pin, or its end."""
    return Expected(TellPinned, {"request": request, "model": model, "pinned": pinned, "changed": changed})


def stop(model: str, *, at_once: bool = False, nth: int = -1) -> Expected:
    """Have a model's worker go."""
    return Expected(StopWorker, {"at_once": at_once}, (model, nth))


def grant(request: int, model: str) -> Expected:
    """Hand a request to a model's worker."""
    return Expected(StartGeneration, {"request": request}, (model, -1))


def halt(request: int, model: str) -> Expected:
    """Have a model's worker end a request early."""
    return Expected(StopGeneration, {"request": request}, (model, -1))


def complete(request: int) -> Expected:
    """Send the worker's answer."""
    return Expected(Complete, {"request": request})


def resident(request: int, model: str, **fields: object) -> Expected:
    """Answer that a model is resident; `fields` of TellResident as far as they matter."""
    return Expected(TellResident, {"request": request, "model": model, **fields})


def cold(request: int, model: str, **fields: object) -> Expected:
    """Answer that a model holds nothing."""
    return Expected(TellCold, {"request": request, "model": model, **fields})


def forgotten(request: int, model: str) -> Expected:
    """Answer that a model is off the list."""
    return Expected(TellForgotten, {"request": request, "model": model})


def refuse(request: int, code: str, **fields: object) -> Expected:
    """Answer with an error; `fields` of Fault as far as they matter."""
    paths = {f"fault.{name}": value for name, value in fields.items()}
    return Expected(Refuse, {"request": request, "fault.code": code, **paths})


def remember(active: str | None) -> Expected:
    """Keep which model is active."""
    return Expected(Remember, {"memory.active": active})


def sets(clock: Clock, *, at: float) -> Expected:
    """Set a timer."""
    return Expected(SetTimer, {"timer.clock": clock, "at": at})


def clears(clock: Clock) -> Expected:
    """Clear a timer."""
    return Expected(ClearTimer, {"timer.clock": clock})


def notice(event: str, model: str | None = None) -> Expected:
    """Tell whoever watches."""
    return Expected(Publish, {"event": event, "model": model})


def ends() -> Expected:
    """End the daemon."""
    return Expected(Exit)


# --- the script --------------------------------------------------------------------------------------

_TIMERS = (SetTimer, ClearTimer)


def _is_aside(effect: Effect, active: str | None) -> bool:
    """Whether an effect has a check of its own; `active` is what was remembered as active before."""
    if isinstance(effect, Remember):
        return effect.memory.active == active
    return isinstance(effect, (*_TIMERS, Publish, Learn))


class Playbook:
    """A script under way. `state` may be looked at between lines."""

    def __init__(self, *models: str, rules: Rules | None = None, limit_bytes: int = 2 * GIB) -> None:
        self.state = State(rules=rules or Rules(), limit_bytes=limit_bytes)
        self.now = 1000.0
        self._workers: dict[str, list[int]] = {}
        self._timers: dict[Timer, float] = {}
        self._effects: tuple[Effect, ...] = ()
        self._active: str | None = None
        self._told: list[str] = []
        for model in models:
            self.when(registered(model)).then()

    def given_ready(self, model: str, ctx: int = 0) -> Self:
        """A model that was loaded from cold, by a request (numbered below zero) that has its answer."""
        request = -1 - len(self._told)
        self.when(load(request, model, ctx=ctx)).then(start(model, ctx or CTX))
        return self.when(ready(model)).then(remember(model), resident(request, model, changed=True))

    def later(self, seconds: float) -> Self:
        """Time goes by, and nothing happens."""
        self.now += seconds
        return self

    def when(self, line: Cue) -> Self:
        """Something happens: one step of the machine."""
        self._expect_none_left()
        event = line(self._scene())
        self.now = event.now
        if isinstance(event, TimerFired):
            self._timers.pop(event.timer, None)
        self._active = self.state.remembered.active
        self.state, self._effects = step(self.state, event)
        for effect in self._effects:
            match effect:
                case StartWorker():
                    self._workers.setdefault(effect.model, []).append(effect.worker)
                case SetTimer():
                    self._timers[effect.timer] = effect.at
                case ClearTimer():
                    self._timers.pop(effect.timer, None)
                case _:
                    pass
        self._told.append(self._lines(event))
        if (broken := check(self.state)) is not None:
            raise self._failure(f"an invariant does not hold: {broken}")
        return self

    def then(self, *expected: Expected) -> Self:
        """What the machine decided, all of it and in this order; timers and notices aside."""
        decided = [effect for effect in self._effects if not _is_aside(effect, self._active)]
        self._compare(sorted(decided, key=lambda effect: not isinstance(effect, Remember)), expected)
        self._effects = tuple(effect for effect in self._effects if _is_aside(effect, self._active))
        return self

    def memory(self, *expected: Expected) -> Self:
        """What the last step has kept across restarts besides the active model."""
        self._compare([effect for effect in self._effects if isinstance(effect, Remember | Learn)], expected)
        return self

    def timers(self, *expected: Expected) -> Self:
        """The timers that the last step set and cleared, all of them and in this order."""
        self._compare([effect for effect in self._effects if isinstance(effect, _TIMERS)], expected)
        return self

    def notices(self, *expected: Expected) -> Self:
        """The notices of the last step, all of them and in this order."""
        self._compare([effect for effect in self._effects if isinstance(effect, Publish)], expected)
        return self

    def states(self, **expected: Status) -> Self:
        """Where models are now."""
        actual = {name: self.state.models[name].status for name in expected}
        if actual != expected:
            raise self._failure(f"expected {_shown(expected)}, but it is {_shown(actual)}")
        return self

    def _scene(self) -> Scene:
        return Scene(self.now, self.state, self._workers, self._timers)

    def _expect_none_left(self) -> None:
        if any(not _is_aside(effect, self._active) for effect in self._effects):
            raise self._failure("the script goes on without a word about these effects")

    def _compare(self, decided: Sequence[Effect], expected: Sequence[Expected]) -> None:
        scene = self._scene()
        same = len(decided) == len(expected) and all(
            each.matches(effect, scene) for each, effect in zip(expected, decided, strict=True)
        )
        if not same:
            wanted = "\n".join(f"    {each}" for each in expected) or "    nothing"
            got = "\n".join(f"    {effect}" for effect in decided) or "    nothing"
            raise self._failure(f"expected\n{wanted}\n  but the machine decided\n{got}")

    def _lines(self, event: Event) -> str:
        effects = "".join(f"\n      -> {effect}" for effect in self._effects)
        return f"  {event}{effects}\n      == {_state(self.state)}"

    def _failure(self, why: str) -> AssertionError:
        return AssertionError("\n".join(["the story:", *self._told, f"  {why}"]))


def _state(state: State) -> str:
    """A state in one line."""
    models = [f"{name} {model.status}" for name, model in state.models.items()]
    switch = f"{state.switch.phase} to {state.switch.target}" if state.switch is not None else "no switch"
    waiting = [f"{t.request}:{t.want} {t.model}" for t in state.waiting]
    return f"{', '.join(models)}; {switch}; waiting {waiting}; running {sorted(state.running)}; active {state.active}"


def _shown(states: Mapping[str, Status]) -> str:
    return ", ".join(f"{name} {status}" for name, status in states.items())
