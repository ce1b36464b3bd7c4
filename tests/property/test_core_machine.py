"""The core against a world that does anything at any time, with the events of production.

`tests.world` checks the contract with the runtime at every step; this file decides what happens. In the end every
request must have its one answer and the daemon must be able to stop, whatever the story was.

`HYPOTHESIS_PROFILE=thorough` runs 2,000 stories of 100 steps instead of a few short ones.
"""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from h2qd.core.effects import Clock, Timer
from h2qd.core.events import (
    Event,
    ForgetAsked,
    GenerationEnded,
    LimitRead,
    ModelRegistered,
    RequestAbandoned,
    RequestArrived,
    TimerFired,
    WorkerExited,
    WorkerMeasured,
    WorkerReady,
)
from h2qd.core.machine import step
from h2qd.core.plan import ModelShape
from h2qd.core.records import Fault, Rules, Ticket, Want
from tests.world import CRASH, HELD, UNREADABLE, World

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"

GIB = 2**30
SMALL = ModelShape(tensor_bytes=GIB, context_length=8192)
LARGE = ModelShape(
    tensor_bytes=3 * GIB, context_length=32768, layers=8, kv_heads=(8,), key_length=128, value_length=128
)
"""Fits the usual limit with a small context only."""

MODELS = ("a", "b", "large")
names = st.sampled_from(["a", "a", "a", "b", "b", "large", "", "other"])
contexts = st.sampled_from([0, 0, 0, 1000, 4096, 30000])
picks = st.integers(min_value=0, max_value=40)
clients = st.integers(min_value=1, max_value=4)
waits = st.sampled_from([None, None, 0.0, 1.0, 7.0])


class AnyStory(RuleBasedStateMachine):
    """What may happen, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.requests = 0
        self.loads_fail_in_the_end = False

    @initialize(
        slots=st.integers(min_value=1, max_value=3),
        queue_max=st.integers(min_value=1, max_value=4),
        patience_s=st.sampled_from([0.0, 2.0]),
        breaker_count=st.integers(min_value=1, max_value=4),
        loads_fail_in_the_end=st.booleans(),
    )
    def begins(
        self, slots: int, queue_max: int, patience_s: float, breaker_count: int, *, loads_fail_in_the_end: bool
    ) -> None:
        self.world = World(
            Rules(slots=slots, queue_max=queue_max, patience_s=patience_s, breaker_count=breaker_count)
        )
        self.loads_fail_in_the_end = loads_fail_in_the_end
        self.world.feed(LimitRead(0.0, 4 * GIB))
        for name in MODELS:
            self.world.feed(ModelRegistered(0.0, name, LARGE if name == "large" else SMALL, 2048))

    # --- clients --------------------------------------------------------------------------------------

    def ask(self, want: Want, name: str, client: int, wait: float | None, **wishes: bool | int) -> None:
        self.requests += 1
        now = self.world.now
        ticket = Ticket(
            self.requests,
            client,
            want,
            name,
            now,
            None if wait is None else now + wait,
            ctx=int(wishes.get("ctx", 0)),
            force=bool(wishes.get("force")),
            reset=bool(wishes.get("reset")),
        )
        self.world.ask(ticket)

    @rule(name=names, client=clients, wait=waits, ctx=st.sampled_from([0, 0, 0, 0, 0, 1000]))
    def infers(self, name: str, client: int, wait: float | None, ctx: int) -> None:
        self.ask(Want.INFER, name, client, wait, ctx=ctx)

    @rule(name=names, client=clients, wait=waits, ctx=contexts, force=st.booleans(), reset=st.booleans())
    def loads(self, name: str, client: int, wait: float | None, ctx: int, *, force: bool, reset: bool) -> None:
        self.ask(Want.RESIDENT, name, client, wait, ctx=ctx, force=force and reset, reset=reset)

    @rule(name=names, client=clients, wait=waits, force=st.booleans())
    def unloads(self, name: str, client: int, wait: float | None, *, force: bool) -> None:
        self.ask(Want.COLD, name, client, wait, force=force)

    @precondition(lambda self: self.world.unanswered())
    @rule(pick=picks)
    def gives_up(self, pick: int) -> None:
        unanswered = self.world.unanswered()
        self.world.give_up(unanswered[pick % len(unanswered)])

    # --- workers --------------------------------------------------------------------------------------

    @precondition(lambda self: any(not w.ready and not w.leaving for w in self.world.workers.values()))
    @rule(rounds=st.booleans())
    def load_succeeds(self, *, rounds: bool) -> None:
        worker = next(iter(self.world.workers.values()))
        self.world.load_ends(worker, ctx=-(-worker.ctx // 256) * 256 if rounds else None)

    @precondition(lambda self: any(not w.ready for w in self.world.workers.values()))
    @rule()
    def load_fails(self) -> None:
        self.world.load_ends(next(iter(self.world.workers.values())), fault=UNREADABLE)

    @precondition(lambda self: any(w.leaving and not w.ready for w in self.world.workers.values()))
    @rule()
    def load_succeeds_too_late(self) -> None:
        worker = next(iter(self.world.workers.values()))
        late = WorkerReady(self.world.now, worker.number, worker.ctx, HELD, 0.5)
        assert step(self.world.state, late) == (self.world.state, ())

    @precondition(lambda self: any(w.leaving for w in self.world.workers.values()))
    @rule()
    def leaves(self) -> None:
        self.world.exits(next(iter(self.world.workers.values())))

    @precondition(lambda self: self.world.workers)
    @rule()
    def crashes(self) -> None:
        self.world.exits(next(iter(self.world.workers.values())), CRASH)

    @precondition(lambda self: any(w.ready for w in self.world.workers.values()))
    @rule()
    def hangs(self) -> None:
        next(iter(self.world.workers.values())).hung = True

    @precondition(lambda self: self.world.workers)
    @rule(held=st.integers(min_value=0, max_value=5 * GIB))
    def is_measured(self, held: int) -> None:
        self.world.feed(WorkerMeasured(self.world.now, next(iter(self.world.workers)), held))

    @precondition(lambda self: self.world.working())
    @rule(pick=picks, fails=st.booleans())
    def generation_ends(self, pick: int, *, fails: bool) -> None:
        working = self.world.working()
        fault = Fault("generation_failed", "the engine failed") if fails else None
        self.world.generated(working[pick % len(working)], fault)

    @rule(moves=st.integers(min_value=1, max_value=4))
    def life_goes_on(self, moves: int) -> None:
        for _ in range(moves):
            self.world.moves()

    @precondition(lambda self: any(w.ready and not w.leaving for w in self.world.workers.values()))
    @rule(name=st.sampled_from(MODELS), ctx=contexts, joined=st.integers(min_value=0, max_value=2), client=clients)
    def switch_fails(self, name: str, ctx: int, joined: int, client: int) -> None:
        """A short cut into rollbacks, which chance alone finds too seldom."""
        for each in range(joined):
            self.ask(Want.RESIDENT, name, client + each, 7.0 if each else None, ctx=0 if each else ctx)
        self.ask(Want.RESIDENT, name, client, None, ctx=ctx, force=True)
        if any(w.leaving for w in self.world.workers.values()):
            self.leaves()
        if any(not w.ready for w in self.world.workers.values()):
            self.load_fails()

    # --- time and the surroundings --------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 2.0, 6.0, 31.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_time(self.world.now + seconds)

    @rule(name=st.sampled_from(MODELS), large=st.booleans(), ctx=st.sampled_from([1000, 2048]))
    def registers(self, name: str, ctx: int, *, large: bool) -> None:
        self.world.feed(ModelRegistered(self.world.now, name, LARGE if large else SMALL, ctx))

    @rule(name=names)
    def forgets(self, name: str) -> None:
        self.requests += 1
        self.world.feed(ForgetAsked(self.world.now, self.requests, name))

    @rule(limit_bytes=st.sampled_from([4 * GIB, 4 * GIB, 2 * GIB, GIB]))
    def limit_is_read(self, limit_bytes: int) -> None:
        self.world.feed(LimitRead(self.world.now, limit_bytes))

    @precondition(lambda self: self.world.steps > 25)
    @rule(pick=picks, drain_s=st.sampled_from([0.0, 3.0]))
    def daemon_stops(self, pick: int, drain_s: float) -> None:
        if pick == 0:
            self.world.stop(drain_s)

    # --- the past -------------------------------------------------------------------------------------

    @rule(pick=picks)
    def the_past_speaks_again(self, pick: int) -> None:
        world, now = self.world, self.world.now
        stale: list[Event] = [TimerFired(now, Timer(Clock.PATIENCE, -1))]
        for worker in sorted(world.dead)[-3:]:
            stale += [WorkerExited(now, worker, CRASH), WorkerReady(now, worker, 1, 1, 0.1)]
            stale += [WorkerMeasured(now, worker, 77)]
        for request in list(world.outcomes)[-3:]:
            stale += [GenerationEnded(now, request), RequestAbandoned(now, request, CRASH)]
            stale += [TimerFired(now, Timer(clock, request)) for clock in (Clock.DEADLINE, Clock.CANCEL)]
        event = stale[pick % len(stale)]
        assert step(world.state, event) == (world.state, ())

    def teardown(self) -> None:
        """Every story ends well: all are answered, and the daemon can stop."""
        self.world.rest(loads_fail=self.loads_fail_in_the_end)
        self.world.stop()
        self.world.rest()
        assert self.world.exited
        late = Ticket(self.requests + 1, 1, Want.INFER, "", self.world.now)
        self.world.feed(RequestArrived(self.world.now, late))
        assert late.request in self.world.outcomes


AnyStory.TestCase.settings = settings(
    max_examples=2000 if THOROUGH else 500,
    stateful_step_count=100 if THOROUGH else 60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestAnyStory = AnyStory.TestCase
