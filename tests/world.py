"""The world outside of the core, in small: workers, generations, timers and clients, as the runtime has them.

`World.feed` takes one step of the real machine and performs its effects on this world, asserting on the way whatever
a runtime relies on: a worker is started once, is spoken to while it lives, two never hold memory at once; each
request gets exactly one answer, and only after its worker is done with it; timers are set for what exists and are
gone with it; the state agrees with the world. It chooses nothing: who drives it (a random machine, a simulated day)
decides what happens next, with the events that a real daemon would send.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import assert_never

from h2qd.core import budget
from h2qd.core.admission import satisfies
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
from h2qd.core.records import Fault, Memory, Phase, Rules, State, Ticket, Want
from h2qd.core.states import HOLDING, RESIDENT, TABLE, Move, Status

HELD = 2**30
PARKED = 2**27
CRASH = Fault("worker_crashed", "the process died")
UNREADABLE = Fault("load_failed", "the file cannot be read")
NOBODY = Fault("remote_unreachable", "cannot connect to the server", away=True)


@dataclass
class Worker:
    """A process: it loads until `ready`, works until it was told to go (`leaving`), and may hang at work.

    While it is `parking` it frees its context, then it is `parked` until it makes another.
    """

    number: int
    model: str
    ctx: int
    ready: bool = False
    leaving: bool = False
    hung: bool = False
    parking: bool = False
    parked: bool = False
    held_bytes: int = HELD

    @property
    def loads(self) -> bool:
        """Whether it is about to be ready, by itself."""
        return not (self.ready or self.leaving or self.parking or self.parked)


@dataclass
class Generation:
    """A request that a worker works on."""

    request: int
    worker: int
    stopped: bool = False


@dataclass
class World:
    """What is outside, and the state of the core that knows it. `now` in seconds.

    Workers round the context that they are asked for up to `ctx_step` tokens.
    """

    rules: Rules = field(default_factory=Rules)
    ctx_step: int = 1
    now: float = 0.0
    workers: dict[int, Worker] = field(default_factory=dict)
    generations: dict[int, Generation] = field(default_factory=dict)
    timers: dict[Timer, float] = field(default_factory=dict)
    tickets: dict[int, Ticket] = field(default_factory=dict)
    open: dict[int, Ticket] = field(default_factory=dict)
    outcomes: dict[int, Effect] = field(default_factory=dict)
    answered_at: dict[int, float] = field(default_factory=dict)
    granted_at: dict[int, float] = field(default_factory=dict)
    remembered: Memory = field(default_factory=Memory)
    learned: dict[str, tuple[Lesson, ...]] = field(default_factory=dict)
    asks: dict[str, float] = field(default_factory=dict)
    exited: bool = False
    steps: int = 0
    loads: int = 0

    def __post_init__(self) -> None:
        self.state = State(rules=self.rules)
        self._forgets: set[int] = set()
        self._pins: set[int] = set()
        self.dead: set[int] = set()
        self._answered_by_worker: set[int] = set()
        self._statuses: dict[str, Status] = {}

    # --- what happens ---------------------------------------------------------------------------------

    def feed(self, event: Event) -> tuple[Effect, ...]:
        """One step: the event goes in, what comes out is done, and everything is checked."""
        self.now = event.now
        self._note(event)
        self.state, effects = step(self.state, event)
        self.steps += 1
        for effect in effects:
            self._perform(effect)
        broken = check(self.state)
        assert broken is None, broken
        self._check_agreement()
        return effects

    def ask(self, ticket: Ticket) -> None:
        """A client asks for something."""
        self.feed(RequestArrived(self.now, ticket))

    def give_up(self, request: int) -> None:
        """A client cancels, or is gone."""
        self.feed(RequestAbandoned(self.now, request, Fault("cancelled", "cancelled")))

    def load_ends(self, worker: Worker, *, fault: Fault | None = None, load_s: float = 0.5) -> None:
        """A worker has loaded its model, or could not."""
        if fault is None:
            worker.ready = True
            given_ctx = -(-worker.ctx // self.ctx_step) * self.ctx_step
            self.feed(WorkerReady(self.now, worker.number, given_ctx, worker.held_bytes, load_s))
        else:
            self.exits(worker, fault)

    def brings_up(self) -> None:
        """The worker there is does its part: it goes when it was told to, and else has loaded what it loads."""
        for worker in list(self.workers.values()):
            if worker.number in self.workers:
                if worker.leaving:
                    self.exits(worker)
                elif worker.parking:
                    self.parks(worker)
                elif worker.loads:
                    self.load_ends(worker)

    def measured(self, worker: Worker, held_bytes: int, *, exercised: bool = False) -> None:
        """A worker turns out to hold so much."""
        worker.held_bytes = held_bytes
        self.feed(WorkerMeasured(self.now, worker.number, held_bytes, exercised))

    def parks(self, worker: Worker, still_bytes: int = PARKED) -> None:
        """A worker has freed its context."""
        worker.parking, worker.parked = False, True
        for request in [g.request for g in self.generations.values() if g.worker == worker.number]:
            del self.generations[request]
        freed_bytes, worker.held_bytes = worker.held_bytes - still_bytes, still_bytes
        self.feed(WorkerParked(self.now, worker.number, still_bytes, freed_bytes, 0.05))

    def exits(self, worker: Worker, fault: Fault = CRASH) -> None:
        """A worker is gone, as it was told or all by itself."""
        del self.workers[worker.number]
        self.dead.add(worker.number)
        for request in [g.request for g in self.generations.values() if g.worker == worker.number]:
            del self.generations[request]
        self.feed(WorkerExited(self.now, worker.number, fault, worker.held_bytes, worker.held_bytes, 0.1))

    def generated(self, generation: Generation, fault: Fault | None = None) -> None:
        """A worker is done with a request."""
        del self.generations[generation.request]
        self.feed(GenerationEnded(self.now, generation.request, fault))

    def asked(self, server: str, fault: Fault | None = None) -> None:
        """A server told what it has, or did not."""
        self.asks.pop(server, None)
        self.feed(ServerAsked(self.now, server, fault))

    def fire(self, timer: Timer) -> None:
        """A timer goes off at its time; the clock moves on to it."""
        at = max(self.now, self.timers.pop(timer))
        self.feed(TimerFired(at, timer))

    def next_timer(self) -> Timer | None:
        """The timer that goes off first."""
        return min(self.timers, key=lambda timer: (self.timers[timer], timer.clock, timer.key), default=None)

    def pass_time(self, until: float) -> None:
        """The clock moves on; what is due on the way goes off, in order."""
        while (timer := self.next_timer()) is not None and self.timers[timer] <= until:
            self.fire(timer)
        self.now = max(self.now, until)

    def unanswered(self) -> list[int]:
        """The requests that have no answer yet, oldest first."""
        return list(self.open)

    def working(self) -> list[Generation]:
        """The generations that will end by themselves."""
        return [g for g in self.generations.values() if not self.workers[g.worker].hung]

    def moves(self, *, loads_fail: bool = False) -> bool:
        """What comes next by itself, if anything: a generation ends, a worker goes or has loaded, a timer goes off.

        The clients of a hung worker lose their patience last, and then an emergency ends.
        """
        loading = [w for w in self.workers.values() if w.loads]
        leaving = [w for w in self.workers.values() if w.leaving]
        parking = [w for w in self.workers.values() if w.parking and not w.leaving]
        if working := self.working():
            self.generated(working[0])
        elif parking:
            self.parks(parking[0])
        elif leaving:
            self.exits(leaving[0])
        elif loading:
            self.load_ends(loading[0], fault=UNREADABLE if loads_fail else None)
        elif (timer := self.next_timer()) is not None:
            self.fire(timer)
        elif self.generations:
            self.give_up(next(iter(self.generations)))
        elif self.open and not self.state.guard.admits_work:
            self.feed(MemoryRead(self.now + 1.0, 0.1, self.state.limit_bytes))
        else:
            return False
        return True

    def rest(self, *, loads_fail: bool = False, steps_max: int = 5000) -> None:
        """Let the world run until nothing moves. Who is unanswered then would wait for ever: that is a failure.

        So is a world that never comes to rest.
        """
        for _ in range(steps_max):
            if not self.moves(loads_fail=loads_fail):
                break
        else:
            raise AssertionError(f"the world does not come to rest in {steps_max} steps")
        assert not self.unanswered(), f"requests {self.unanswered()} wait for ever in {self.state}"

    def forget(self, request: int) -> None:
        """Nobody will speak of an answered request again; a second answer is one to a request that nobody sent."""
        assert request not in self.open, "a request is forgotten before its answer"
        for known in (self.tickets, self.outcomes, self.answered_at, self.granted_at):
            known.pop(request, None)
        self._answered_by_worker.discard(request)

    # --- what is done ---------------------------------------------------------------------------------

    def _note(self, event: Event) -> None:
        match event:
            case RequestArrived():
                assert event.ticket.request not in self.tickets, "the driver uses a request's number twice"
                self.tickets[event.ticket.request] = self.open[event.ticket.request] = event.ticket
            case ForgetAsked():
                self._forgets.add(event.request)
            case PinAsked():
                self._pins.add(event.request)
            case Recalled():
                self.remembered = Memory(event.active, event.resident, event.pinned)
            case GenerationEnded(fault=None):
                self._answered_by_worker.add(event.request)
            case ModelRegistered():
                self.learned[event.name] = event.lessons
            case _:
                pass

    def _perform(self, effect: Effect) -> None:  # noqa: C901, PLR0912 - one flat list of effects
        match effect:
            case StartWorker():
                self._start_worker(effect)
            case ResumeWorker():
                self._resume_worker(effect)
            case ParkWorker():
                worker = self.workers[effect.worker]
                assert worker.ready, "a worker without a context is parked"
                assert not worker.leaving, "a worker that was told to go is parked"
                mine = [g for g in self.generations.values() if g.worker == worker.number]
                assert all(g.stopped for g in mine), "a busy worker is parked"
                worker.ready, worker.parking = False, True
            case StopWorker():
                self.workers[effect.worker].leaving = True
            case StartGeneration():
                self._start_generation(effect)
            case StopGeneration():
                generation = self.generations[effect.request]
                assert generation.worker == effect.worker, "a request is stopped on a worker that does not have it"
                assert not generation.stopped, "a request is stopped twice"
                generation.stopped = True
            case Complete():
                assert effect.request in self._answered_by_worker, "an answer is sent that no worker gave"
                assert effect.request in self.granted_at, "an answer is sent to a request that never ran"
                self._answer(effect.request, effect)
            case TellResident():
                model = self.state.models[effect.model]
                assert self.tickets[effect.request].want is Want.RESIDENT, "a load's answer to another request"
                assert model.given_ctx == effect.ctx, "an answer tells another context than there is"
                self._answer(effect.request, effect)
            case TellCold():
                assert self.tickets[effect.request].want is Want.COLD, "an unload's answer to another request"
                self._answer(effect.request, effect)
            case TellPinned():
                assert effect.request in self._pins, "a pin's answer to another request"
                assert self.state.models[effect.model].pinned == effect.pinned, "a pin is told that is not so"
                self._pins.discard(effect.request)
            case Learn():
                assert effect.lessons != self.learned[effect.model], "what is known already is learned again"
                self.learned[effect.model] = effect.lessons
            case AskServer():
                assert effect.at >= self.now, "a server is to be asked in the past"
                self.asks[effect.server] = effect.at
            case TrimCaches():
                pass
            case TellForgotten():
                assert effect.request in self._forgets, "a removal's answer to another request"
                assert effect.model not in self.state.models, "a model is forgotten and still there"
                self._forgets.discard(effect.request)
            case Refuse():
                if effect.request in self._forgets | self._pins:
                    self._forgets.discard(effect.request)
                    self._pins.discard(effect.request)
                else:
                    self._answer(effect.request, effect)
            case SetTimer():
                assert effect.timer not in self.timers, f"{effect.timer} is set twice"
                self.timers[effect.timer] = effect.at
            case ClearTimer():
                self.timers.pop(effect.timer, None)
            case Publish():
                self._follow(effect)
            case Remember():
                assert effect.memory != self.remembered, "what is remembered already is written again"
                self.remembered = effect.memory
            case Exit():
                assert not self.exited, "the daemon ends twice"
                assert not self.workers, "the daemon ends and leaves workers behind"
                assert not self.unanswered(), "the daemon ends and leaves requests without an answer"
                self.exited = True
            case _:
                assert_never(effect)

    def _start_worker(self, effect: StartWorker) -> None:
        assert effect.worker not in self.workers, "a worker is started twice"
        assert effect.worker not in self.dead, "the number of a dead worker is used again"
        self.workers[effect.worker] = Worker(effect.worker, effect.model, effect.terms.ctx)
        self._check_load(effect)

    def _resume_worker(self, effect: ResumeWorker) -> None:
        worker = self.workers[effect.worker]
        assert worker.parked, "a worker is resumed that is not parked"
        assert worker.model == effect.model, "a worker is resumed for another model"
        assert not worker.leaving, "a worker is resumed that was told to go"
        worker.parked, worker.ctx, worker.held_bytes = False, effect.terms.ctx, HELD
        self._check_load(effect)

    def _check_load(self, effect: StartWorker | ResumeWorker) -> None:
        """No load begins that the budget does not hold, or that the policy forbids."""
        state = self.state
        assert not state.stopping, "a worker is started while the daemon stops"
        assert budget.free(state) >= 0, f"a load begins that does not fit: {-budget.free(state)} bytes too many"
        if self.rules.exclusive:
            overlapped = state.switch.overlapped if state.switch is not None else ()
            beside = [m.name for m in state.models.values() if m.status in RESIDENT and m.name not in overlapped]
            assert not beside, f"two models hold memory: {effect.model} beside {beside}"
        self.loads += 1

    def _start_generation(self, effect: StartGeneration) -> None:
        worker = self.workers[effect.worker]
        assert worker.ready, "work is given to a worker that still loads"
        assert not worker.leaving, "work is given to a worker that was told to go"
        assert effect.request not in self.granted_at, "a request is granted twice"
        assert effect.request not in self.outcomes, "a request is granted after its answer"
        model, ticket = self.state.models[worker.model], self.tickets[effect.request]
        assert satisfies(model, ticket), "a request is given another context than it asked for"
        self.granted_at[effect.request] = self.now
        self.generations[effect.request] = Generation(effect.request, effect.worker)
        mine = [g for g in self.generations.values() if g.worker == effect.worker]
        assert len(mine) <= 2 * self.rules.slots, "a worker is given more than it takes"

    def _answer(self, request: int, outcome: Effect) -> None:
        assert request in self.tickets, f"an answer to request {request}, which nobody sent"
        assert request not in self.outcomes, f"request {request} is answered twice"
        del self.open[request]
        self.outcomes[request] = outcome
        self.answered_at[request] = self.now

    def _follow(self, notice: Publish) -> None:
        """The notices alone tell every move of every model, along the table."""
        name = notice.model or ""
        if notice.event == "model.moved":
            was, now = Status(str(notice.data["was"])), Status(str(notice.data["now"]))
            assert self._statuses[name] is was, "a move begins where the last one did not end"
            assert TABLE[was, Move(str(notice.data["why"]))] is now, "a move that the table does not hold"
            self._statuses[name] = now
        elif notice.event == "model.registered":
            self._statuses[name] = Status.COLD
        elif notice.event == "model.removed":
            del self._statuses[name]

    # --- the state and the world agree ----------------------------------------------------------------

    def _check_agreement(self) -> None:
        state = self.state
        assert {m.worker for m in state.models.values() if m.status in HOLDING} == set(self.workers)
        for model in state.models.values():
            if model.worker is not None:
                worker = self.workers[model.worker]
                goes = worker.leaving or worker.parking
                assert goes == (model.status is Status.UNLOADING), "who was told to go is not who goes"
                assert worker.parked == (model.status is Status.PARKED or (worker.parked and worker.leaving))
        self._check_memory(state)
        assert self._statuses == {m.name: m.status for m in state.models.values()}
        away = {name for name, breaker in state.breakers.items() if breaker.retry_at is not None}
        assert away <= self.asks.keys(), "a server is away, and nobody asks it again"
        assert not self._forgets, "a removal has no answer"
        assert not self._pins, "a pin has no answer"
        assert self.exited == state.stopped
        known = {*self._unanswered_in(state)}
        assert known == set(self.open), "the core has lost a request, or kept one that was answered"
        self._check_timers(state)

    def _check_memory(self, state: State) -> None:
        """What was written down is what a restart should find."""
        assert self.remembered.active == state.active, "what is remembered is not what is active"
        assert set(self.remembered.pinned) == {m.name for m in state.models.values() if m.pinned}
        for model in state.models.values():
            assert self.learned[model.name] == model.lessons, f"what was learned of {model.name} is not kept"

    @staticmethod
    def _unanswered_in(state: State) -> Iterator[int]:
        yield from state.waiting.by_request
        yield from state.running
        if state.switch is not None:
            yield from (ticket.request for ticket in state.switch.losers)

    def _check_timers(self, state: State) -> None:
        """Timers that must be set are, and no timer outlives what it is for."""
        cancelling = {r.ticket.request for r in state.running.values() if r.ending is not None}
        idle_until = {m.worker: (m.expires_at,) for m in state.models.values() if m.worker is not None}
        patient = state.switch is not None and state.switch.phase is Phase.PATIENCE
        for timer in self.timers:
            match timer.clock:
                case Clock.DEADLINE:
                    assert timer.key not in self.outcomes, "a deadline outlives its request"
                case Clock.CANCEL:
                    assert timer.key in cancelling, "a cancel is watched that is over"
                case Clock.PATIENCE:
                    assert patient, "patience is timed and nobody is patient"
                case Clock.IDLE:
                    assert self.timers[timer] in idle_until.get(timer.key, ()), "a model is timed that is not idle"
                case Clock.DRAIN:
                    assert state.stopping, "a drain is timed and the daemon does not stop"
                    assert not state.stopped, "a drain is timed after the end"
                case _:
                    assert_never(timer.clock)
        assert cancelling <= {t.key for t in self.timers if t.clock is Clock.CANCEL}, "a cancel is not watched"
        timed = {t.key for t in self.timers if t.clock is Clock.IDLE}
        assert {m.worker for m in state.models.values() if m.expires_at is not None} <= timed, "idleness has no end"
        if state.switch is not None and patient:
            assert Timer(Clock.PATIENCE, state.switch.serial) in self.timers, "patience has no end"
        if state.stopping and state.running:
            assert any(timer.clock is Clock.DRAIN for timer in self.timers), "a drain has no end"

    def stop(self, drain_s: float = 5.0) -> None:
        """The daemon is told to end."""
        self.feed(StopAsked(self.now, drain_s))
