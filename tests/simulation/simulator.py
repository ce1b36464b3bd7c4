"""A simulated device and its clients around the real core: lives of the daemon, one after the other, in virtual time.

Everything is drawn from one seed, so a failure can be had again. The core is stepped through `tests.world`, which
performs its effects and checks the contract and every invariant; here is decided how long things take and what goes
wrong, and `bounds` says what must hold over time. What a life learned and remembered is what the next begins with.
Used by the tests beside it and by `python -m tests.simulation`.
"""

import random
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import Any

from h2qd.core import budget
from h2qd.core.effects import (
    Complete,
    Effect,
    ParkWorker,
    Publish,
    Refuse,
    ResumeWorker,
    SetTimer,
    StartGeneration,
    StartWorker,
    StopGeneration,
    StopWorker,
    TellCold,
    TellResident,
)
from h2qd.core.events import Event, LimitRead, MemoryRead, ModelRegistered, PinAsked, Recalled, RequestArrived
from h2qd.core.lessons import Lesson
from h2qd.core.machine import step
from h2qd.core.offers import parked_bytes, plan_of
from h2qd.core.records import Fault, Memory, Rules, State, Ticket, Want
from tests.simulation.agenda import Agenda
from tests.simulation.bounds import Bounds
from tests.simulation.clients import Client, Restorer, guests
from tests.simulation.device import GIB, Device, Holding
from tests.simulation.setting import HANG_S, LOAD_HANG_S, STOP_S_MAX, Setting, Weather
from tests.world import CRASH, UNREADABLE, World

TICK_S = 0.25
READING_S = 1.0
LIFE_EVENTS = 5_000
STORY_EVENTS = 50
_OUTGROWN_SHARE = 1.25
"""A contained worker that holds so much of its plan is ended by the kernel."""

HUNG = Fault("worker_hung", "the process gave no sign of life")
OUT_OF_MEMORY = Fault("worker_oom", "the kernel ended the process for want of memory")


class DefectError(AssertionError):
    """Something does not hold; the message has the seed and the story."""


class WatchedWorld(World):
    """A world that tells of each step: the state before it, the event, its effects."""

    def __init__(self, rules: Rules, tell: Callable[[State, Event, tuple[Effect, ...]], None]) -> None:
        super().__init__(rules)
        self.tell = tell
        self.story: deque[tuple[State, Event]] = deque(maxlen=STORY_EVENTS)

    def feed(self, event: Event) -> tuple[Effect, ...]:
        before = self.state
        self.story.append((before, event))
        effects = super().feed(event)
        self.tell(before, event, effects)
        return effects


class Simulation:
    """One seed's lives. `run` goes on until so many events have happened."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.chance = random.Random(setting.seed)
        self.natures = {subject.name: subject.nature for subject in setting.subjects}
        self.learned: dict[str, tuple[Lesson, ...]] = {}
        self.memory = Memory()
        self.counts: Counter[str] = Counter()
        self.events = 0
        self.lives = 0
        self.longest_wait_s = 0.0
        self.longest_turn_s = 0.0
        self.oom_kills = 0
        self.virtual_s = 0.0

    def run(self, events: int) -> None:
        """Live, as often as it takes. Raises DefectError."""
        while self.events < events:
            self._live(min(events - self.events, LIFE_EVENTS))

    def _live(self, events: int) -> None:
        life = Life(self)
        try:
            life.run(events)
        except Exception as error:
            raise DefectError(tale(self, life, error)) from error
        self.lives += 1
        self.events += life.world.steps
        self.learned, self.memory = life.world.learned, life.world.remembered
        self.counts.update(life.bounds.counts)
        self.longest_wait_s = max(self.longest_wait_s, life.bounds.longest_wait_s)
        self.longest_turn_s = max(self.longest_turn_s, life.bounds.longest_turn_s)
        self.oom_kills += life.device.oom_kills
        self.virtual_s += life.world.now


class Life:
    """The daemon from its start to its end, and everything around it."""

    def __init__(self, simulation: Simulation) -> None:
        setting = self.setting = simulation.setting
        self.chance = chance = simulation.chance
        self.natures = simulation.natures
        self.agenda = Agenda()
        self.device = Device(random.Random(chance.getrandbits(64)), setting.temper)
        self.bounds = Bounds(setting, self.device)
        self.world = WatchedWorld(setting.rules, self._follow)
        self.owners: dict[int, Client] = {}
        self.works_s: dict[int, float] = {}
        self.orders: dict[int, int] = {}
        self.exercised: set[int] = set()
        self.requests = 0
        self.read_at = 0.0
        for subject in setting.subjects:
            known = simulation.learned.get(subject.name, ())
            self.world.feed(ModelRegistered(0.0, subject.name, subject.shape, subject.ctx, subject.traits, known))
        self.world.feed(LimitRead(0.0, setting.limit_bytes))
        self._read()
        memory = simulation.memory
        restorer = Restorer(0, chance, (), 1.0, 0.0)
        for kept in memory.resident:
            self.ask(restorer, Want.RESIDENT, kept.name, 0.0, ctx=kept.ctx, kv_type=kept.kv_type, activate=False)
        self.world.feed(Recalled(0.0, memory.active, memory.pinned, memory.resident))
        for client in guests(setting, chance):
            client.begin(self)
        self._tick()

    def run(self, events: int) -> None:
        """Let so many events happen, then end it."""
        while self.world.steps < events:
            self._go_on()
        self.world.stop(drain_s := self.chance.choice([0.0, 5.0, 60.0]))
        told_at = self.world.now
        while not self.world.exited:
            self._go_on()
            took_s = self.world.now - told_at
            assert took_s <= drain_s + self.bounds.handover_s, f"the daemon does not end in {took_s:.0f} s"
        assert not self.device.holdings, "memory did not come back"
        assert not self.world.timers, "timers outlive the daemon"
        assert not self.world.open, "requests outlive the daemon"
        assert budget.charged(self.world.state.models.values()) == 0, "the ledger does not end at zero"

    def _go_on(self) -> None:
        when, what = self.agenda.next()
        self.world.now = max(self.world.now, when)
        what()

    # --- the desk -------------------------------------------------------------------------------------

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        """Do something in a while."""
        self.agenda.at(self.world.now + seconds, what)

    def ask(self, client: Client, want: Want, model: str, work_s: float, **wishes: Any) -> int:
        """One request of a client; its number."""
        self.requests += 1
        request, now = self.requests, self.world.now
        wait_s = wishes.pop("wait_s", None)
        number = wishes.pop("number", client.number)
        self.owners[request], self.works_s[request] = client, work_s
        deadline = None if wait_s is None else now + wait_s
        self.world.feed(RequestArrived(now, Ticket(request, number, want, model, now, deadline, **wishes)))
        return request

    def give_up(self, request: int) -> None:
        """A client cancels; it may have heard already."""
        self.world.give_up(request)

    def pin(self, model: str, *, pinned: bool) -> None:
        """A pin, or its end."""
        self.requests += 1
        self.world.feed(PinAsked(self.world.now, self.requests, model, pinned))

    # --- what follows from a step ---------------------------------------------------------------------

    def _follow(self, before: State, event: Event, effects: tuple[Effect, ...]) -> None:
        self.bounds.follow(self.world, before, event, effects)
        for effect in effects:
            match effect:
                case SetTimer():
                    self.agenda.at(effect.at, partial(self._rings, effect))
                case StartWorker() | ResumeWorker():
                    self._loads(effect)
                case ParkWorker():
                    self._parks(effect.worker)
                case StopWorker():
                    self._stops(effect)
                case StartGeneration():
                    self._works(effect)
                case StopGeneration():
                    fault = Fault("cancelled", "it was told to stop")
                    self.later(self.chance.uniform(0.01, 0.3), partial(self._ended, effect.request, fault))
                case Complete() | TellResident() | TellCold() | Refuse():
                    self.later(0.0, partial(self._hears, effect.request, effect))
                case _:
                    pass

    def _rings(self, effect: SetTimer) -> None:
        if self.world.timers.get(effect.timer) == effect.at:
            self.world.fire(effect.timer)

    def _hears(self, request: int, outcome: Effect) -> None:
        client = self.owners.pop(request, None)
        if client is None:
            return  # an answer to a pin, which its client does not wait for
        del self.works_s[request]
        self.world.forget(request)
        client.heard(self, outcome)

    # --- workers --------------------------------------------------------------------------------------

    def _order(self, worker: int) -> int:
        self.orders[worker] = self.orders.get(worker, 0) + 1
        return self.orders[worker]

    def _is_under(self, worker: int, order: int) -> bool:
        """Whether a worker is there and still does what it was told then."""
        return worker in self.world.workers and self.orders[worker] == order

    def _plan_bytes(self, name: str, worker: int) -> int:
        model = self.world.state.models[name]
        assert model.worker == worker, f"worker {worker} is not that of {name}"
        return plan_of(model, model.terms.ctx, model.terms.kv_type, self.setting.rules.slots).total_bytes

    def _loads(self, effect: StartWorker | ResumeWorker) -> None:
        worker, nature, now = effect.worker, self.natures[effect.model], self.world.now
        goal_bytes = int(self._plan_bytes(effect.model, worker) * nature.loaded_share)
        was = self.device.holdings.get(worker)
        was_bytes = 0 if was is None else was.at(now)
        takes_s = 0.05 + goal_bytes / nature.read_bytes_per_s * (0.1 if was_bytes else 1.0)
        self.device.holdings[worker] = Holding(now, takes_s, was_bytes, goal_bytes)
        self.exercised.discard(worker)
        order = self._order(worker)
        fate = self.chance.random()
        if fate < nature.load_fails:
            self.later(takes_s * self.chance.random(), partial(self._dies, worker, order, UNREADABLE))
        elif fate < nature.load_fails + nature.load_hangs:
            self.later(LOAD_HANG_S, partial(self._dies, worker, order, HUNG))
        else:
            self.later(takes_s, partial(self._loaded, worker, order, takes_s))

    def _loaded(self, worker: int, order: int, took_s: float) -> None:
        if self._is_under(worker, order):
            its = self.world.workers[worker]
            self.world.measured(its, self.device.holdings[worker].goal_bytes)
            self._read()
            if self._is_under(worker, order):
                self.world.load_ends(its, load_s=took_s)

    def _parks(self, worker: int) -> None:
        order = self._order(worker)
        if self.chance.random() < self.natures[self.world.workers[worker].model].stop_hangs:
            self.later(STOP_S_MAX, partial(self._dies, worker, order, HUNG))
        else:
            self.later(0.05, partial(self._parked, worker, order))

    def _parked(self, worker: int, order: int) -> None:
        if self._is_under(worker, order):
            its = self.world.workers[worker]
            model = self.world.state.models[its.model]
            still_bytes = min(its.held_bytes, parked_bytes(model, self.setting.rules.slots))
            self.device.holdings[worker] = Holding(self.world.now, 0.0, still_bytes, still_bytes)
            self.world.parks(its, still_bytes)

    def _stops(self, effect: StopWorker) -> None:
        its = self.world.workers[effect.worker]
        order = self._order(effect.worker)
        takes_s = 0.02 if effect.at_once else 0.05 + its.held_bytes / (20 * GIB)
        if not effect.at_once and (its.hung or self.chance.random() < self.natures[its.model].stop_hangs):
            takes_s = STOP_S_MAX
        self.later(takes_s, partial(self._dies, effect.worker, order, CRASH))

    def _dies(self, worker: int, order: int | None, fault: Fault) -> None:
        if worker in self.world.workers and order in (None, self.orders[worker]):
            del self.device.holdings[worker]
            self.world.exits(self.world.workers[worker], fault)

    def _works(self, effect: StartGeneration) -> None:
        worker = effect.worker
        nature = self.natures[self.world.workers[worker].model]
        work_s, order, fate = self.works_s[effect.request], self.orders[worker], self.chance.random()
        if fate < nature.crashes:
            self.later(work_s * self.chance.random(), partial(self._dies, worker, order, CRASH))
        elif fate < nature.crashes + nature.hangs:
            self.later(work_s * self.chance.random(), partial(self._hangs, worker, order))
        self.later(work_s, partial(self._ended, effect.request, None))

    def _hangs(self, worker: int, order: int) -> None:
        if self._is_under(worker, order):
            self.world.workers[worker].hung = True
            self.later(HANG_S, partial(self._dies, worker, order, HUNG))

    def _ended(self, request: int, fault: Fault | None) -> None:
        generation = self.world.generations.get(request)
        if generation is None or self.world.workers[generation.worker].hung:
            return
        self.world.generated(generation, fault)
        worker = self.world.workers.get(generation.worker)
        if worker is not None and worker.ready and not worker.leaving:
            self._grows(worker.number)

    def _grows(self, worker: int) -> None:
        """A first answer takes what was only planned until then; leaks come with each."""
        its = self.world.workers[worker]
        nature, now = self.natures[its.model], self.world.now
        holding = self.device.holdings[worker]
        first = worker not in self.exercised
        if not first and not nature.leaks_bytes:
            return
        self.exercised.add(worker)
        plan_bytes = self._plan_bytes(its.model, worker)
        goal_bytes = holding.goal_bytes + nature.leaks_bytes
        if first:
            goal_bytes = max(goal_bytes, int(plan_bytes * nature.grown_share))
        self.device.holdings[worker] = Holding(now, 0.5, holding.at(now), goal_bytes)
        self.later(1.0, partial(self._measured, worker, self.orders[worker], plan_bytes))

    def _measured(self, worker: int, order: int, plan_bytes: int) -> None:
        if not self._is_under(worker, order):
            return
        held_bytes = self.device.holdings[worker].at(self.world.now)
        if self.setting.contained and held_bytes > plan_bytes * _OUTGROWN_SHARE:
            self._dies(worker, order, OUT_OF_MEMORY)
        else:
            self.world.measured(self.world.workers[worker], held_bytes, exercised=True)

    # --- the kernel -----------------------------------------------------------------------------------

    def _tick(self) -> None:
        device, world = self.device, self.world
        device.live(TICK_S)
        while device.available(world.now) < 0:
            largest = device.largest(world.now)
            if largest is None:
                device.foreign_bytes = device.temper.least_bytes
            else:
                device.oom_kills += 1
                wild = self.setting.weather is Weather.WILD
                assert wild, f"the kernel kills worker {largest}, though all workers keep to their plans"
                self._dies(largest, None, OUT_OF_MEMORY)
        if world.now - self.read_at >= READING_S or device.stalls(world.now):
            self._read()
        self.later(TICK_S, self._tick)

    def _read(self) -> None:
        world, device = self.world, self.device
        self.read_at = world.now
        free_bytes = max(0, device.available(world.now))
        told_bytes = device.foreign_bytes // 2  # so much of what others hold is with servers that say so
        world.feed(
            MemoryRead(
                world.now,
                device.used_share(world.now),
                free_bytes,
                device.stalls(world.now),
                foreign_bytes=told_bytes,
            )
        )


def tale(simulation: Simulation, life: Life, error: Exception) -> str:
    """What went wrong, with the story that led to it."""
    setting, world = simulation.setting, life.world
    lines = [
        f"{type(error).__name__}: {error}",
        f"event {simulation.events + world.steps} of seed {setting.seed}, weather {setting.weather}",
        f"again: python -m tests.simulation --seed {setting.seed} --weather {setting.weather}",
        f"rules: {setting.rules}",
        "the last events and their effects:",
    ]
    for state, event in world.story:
        lines.append(f"  {event}")
        try:
            effects = step(state, event)[1]
        except Exception as failed:  # noqa: BLE001 - the step that failed is the last of the story
            lines.append(f"      ! {failed!r}")
        else:
            lines += [f"      -> {_short(effect)}" for effect in effects]
    lines += ["the state:", *in_words(world.state), f"the device: {life.device.available(world.now)} bytes free"]
    return "\n".join(lines)


def in_words(state: State) -> list[str]:
    """A state, line by line."""
    lines = [
        f"  limit {state.limit_bytes}, room {budget.room(state)}, free {budget.free(state)}",
        f"  active {state.active}, stopping {state.stopping}, {len(state.waiting)} wait, {len(state.running)} run",
        f"  {state.guard}",
        f"  switch: {state.switch}",
    ]
    for m in state.models.values():
        line, running = state.waiting.of(m.name), [r for r in state.running.values() if r.ticket.model == m.name]
        lines.append(
            f"  {m.name}: {m.status}, worker {m.worker}, planned {m.planned_bytes}, held {m.held_bytes}, "
            f"{len(running)} running, {len(line)} waiting"
            + (", pinned" if m.pinned else "")
            + (f", leaving: {m.leaving}" if m.leaving else "")
            + (f", retry at {m.retry_at:.1f}" if m.failures else "")
        )
    return lines


def _short(effect: Effect) -> str:
    if isinstance(effect, Publish):
        return f"{effect.event} {effect.model or ''} {dict(effect.data)}"
    return str(effect)
