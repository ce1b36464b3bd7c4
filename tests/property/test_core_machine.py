"""The core against a world that does anything at any time, with the events of production.

`tests.world` checks the contract with the runtime at every step; this file decides what happens. In the end every
request must have its one answer and the daemon must be able to stop, whatever the story was.

`HYPOTHESIS_PROFILE=thorough` runs 2,000 stories of 100 steps instead of a few short ones.
"""

import os
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from h2qd.core import budget
from h2qd.core.effects import Clock, Timer
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
    TimerFired,
    WorkerExited,
    WorkerMeasured,
    WorkerParked,
    WorkerReady,
)
from h2qd.core.machine import step
from h2qd.core.plan import ModelShape
from h2qd.core.records import Fault, Rules, Ticket, Traits, Want
from tests.world import CRASH, HELD, NOBODY, UNREADABLE, World

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"

GIB = 2**30
DEVICE_BYTES = 8 * GIB
SMALL = ModelShape(tensor_bytes=GIB, context_length=8192)
LARGE = ModelShape(
    tensor_bytes=3 * GIB, context_length=32768, layers=8, kv_heads=(8,), key_length=128, value_length=128
)
"""Fits the usual limit with a small context only."""

MODELS = ("a", "b", "large")
TRAITS = (
    Traits(),
    Traits(ttl_s=3.0),
    Traits(degrade=False),
    Traits(priority=1, variants=("b", "a")),
    Traits(kv_type="q8_0", min_ctx=256, ttl_s=60.0),
)
SERVERS = {"a": "", "b": "box", "large": "box"}
names = st.sampled_from(["a", "a", "a", "b", "b", "large", "", "other"])
contexts = st.sampled_from([0, 0, 0, 1000, 4096, 30000])
kv_types = st.sampled_from(["", "", "", "f16", "q8_0"])
traits = st.sampled_from(TRAITS)
priorities = st.sampled_from([1, 1, 1, 0, 2])
shares = st.sampled_from([0.1, 0.5, 0.77, 0.82, 0.87, 0.92, 0.97])
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
        ctx_step=st.sampled_from([1, 256]),
        exclusive=st.booleans(),
        strict=st.booleans(),
        park_s=st.sampled_from([0.0, 4.0, 100.0]),
        buffer_bytes=st.sampled_from([0, GIB // 4]),
        traits_of=st.tuples(*[traits] * len(MODELS)),
        active=names,
        pinned=st.sampled_from([(), (), ("a",), ("b", "gone"), ("a", "b")]),
    )
    def begins(
        self,
        slots: int,
        queue_max: int,
        patience_s: float,
        breaker_count: int,
        ctx_step: int,
        park_s: float,
        buffer_bytes: int,
        traits_of: tuple[Traits, ...],
        active: str,
        pinned: tuple[str, ...],
        *,
        loads_fail_in_the_end: bool,
        exclusive: bool,
        strict: bool,
    ) -> None:
        rules = Rules(
            exclusive=exclusive,
            strict=strict,
            park_s=park_s,
            buffer_bytes=buffer_bytes,
            slots=slots,
            queue_max=queue_max,
            patience_s=patience_s,
            breaker_count=breaker_count,
        )
        self.world = World(rules, ctx_step=ctx_step)
        self.loads_fail_in_the_end = loads_fail_in_the_end
        self.world.feed(LimitRead(0.0, 4 * GIB))
        for name, its in zip(MODELS, traits_of, strict=True):
            shape = LARGE if name == "large" else SMALL
            self.world.feed(ModelRegistered(0.0, name, shape, 2048, its, server=SERVERS[name]))
        self.world.feed(Recalled(0.0, active or None, pinned))

    # --- clients --------------------------------------------------------------------------------------

    def ask(self, want: Want, name: str, client: int, wait: float | None, **wishes: Any) -> None:
        self.requests += 1
        now = self.world.now
        deadline = None if wait is None else now + wait
        self.world.ask(replace(Ticket(self.requests, client, want, name, now, deadline), **wishes))

    @rule(
        name=names,
        client=clients,
        wait=waits,
        ctx=st.sampled_from([0, 0, 0, 0, 0, 1000]),
        kv_type=kv_types,
        priority=priorities,
    )
    def infers(self, name: str, client: int, wait: float | None, ctx: int, kv_type: str, priority: int) -> None:
        self.ask(Want.INFER, name, client, wait, ctx=ctx, kv_type=kv_type, priority=priority)

    @rule(
        name=names,
        client=clients,
        wait=waits,
        ctx=contexts,
        kv_type=kv_types,
        force=st.booleans(),
        reset=st.booleans(),
        exact=st.booleans(),
        activate=st.booleans(),
    )
    def loads(self, name: str, client: int, wait: float | None, *, force: bool, reset: bool, **wishes: Any) -> None:
        self.ask(Want.RESIDENT, name, client, wait, force=force and reset, reset=reset, **wishes)

    @rule(name=names, client=clients, wait=waits, force=st.booleans())
    def unloads(self, name: str, client: int, wait: float | None, *, force: bool) -> None:
        self.ask(Want.COLD, name, client, wait, force=force)

    @rule(name=names, pinned=st.booleans())
    def pins(self, name: str, *, pinned: bool) -> None:
        self.requests += 1
        self.world.feed(PinAsked(self.world.now, self.requests, name, pinned))

    @precondition(lambda self: self.world.unanswered())
    @rule(pick=picks)
    def gives_up(self, pick: int) -> None:
        unanswered = self.world.unanswered()
        self.world.give_up(unanswered[pick % len(unanswered)])

    # --- workers --------------------------------------------------------------------------------------

    @precondition(lambda self: self.world.workers)
    @rule()
    def worker_does_its_part(self) -> None:
        self.world.brings_up()

    @precondition(lambda self: self.world.workers)
    @rule(pick=picks, share=st.sampled_from([0.9, 1.0, 1.3, 2.0]), exercised=st.booleans())
    def worker_is_measured(self, pick: int, share: float, *, exercised: bool) -> None:
        ready = [w for w in self.world.workers.values() if w.ready and not w.leaving]
        if ready:
            self.world.measured(ready[pick % len(ready)], int(HELD * share), exercised=exercised)

    @precondition(lambda self: self.world.workers)
    @rule(how=st.sampled_from(["dies", "dies", "hangs", "is ready too late", "grows"]))
    def worker_misbehaves(self, how: str) -> None:
        worker = next(iter(self.world.workers.values()))
        if how == "dies":
            theirs = NOBODY if SERVERS.get(worker.model) else UNREADABLE
            self.world.exits(worker, CRASH if worker.ready else theirs)
        elif how == "hangs":
            worker.hung = worker.ready
        elif how == "grows":
            self.world.measured(worker, 5 * GIB)
        elif worker.leaving:
            late = WorkerReady(self.world.now, worker.number, worker.ctx, HELD, 0.5)
            assert step(self.world.state, late) == (self.world.state, ())

    @precondition(lambda self: self.world.working())
    @rule(pick=picks, fails=st.booleans())
    def generation_ends(self, pick: int, *, fails: bool) -> None:
        working = self.world.working()
        generation = working[pick % len(working)]
        theirs = NOBODY if SERVERS.get(self.world.workers[generation.worker].model) else None
        fault = theirs or Fault("generation_failed", "the engine failed")
        self.world.generated(generation, fault if fails else None)

    @rule(answers=st.booleans())
    def server_is_asked(self, *, answers: bool) -> None:
        self.world.asked("box", None if answers else NOBODY)

    # --- short cuts to where chance alone comes too seldom --------------------------------------------

    @rule(name=st.sampled_from(MODELS), client=clients, crowd=st.integers(min_value=1, max_value=4))
    def model_is_busy(self, name: str, client: int, crowd: int) -> None:
        """A few clients at once, and workers that bring their model up."""
        for each in range(crowd):
            self.ask(Want.INFER, name, client + each, None)
        for _ in range(3):
            self.world.brings_up()

    @rule(name=st.sampled_from(MODELS), ctx=contexts, joined=st.integers(min_value=0, max_value=2), client=clients)
    def switch_fails(self, name: str, ctx: int, joined: int, client: int) -> None:
        """A switch by force, its load gone wrong, and a rollback begun if there is something to roll back to."""
        for each in range(joined):
            self.ask(Want.RESIDENT, name, client + each, 7.0 if each else None, ctx=0 if each else ctx)
        self.ask(Want.RESIDENT, name, client, None, ctx=ctx, force=True)
        if any(worker.leaving for worker in self.world.workers.values()):
            self.world.brings_up()
        loading = [w for w in self.world.workers.values() if w.loads]
        if loading:
            self.world.load_ends(loading[0], fault=UNREADABLE)

    @rule(moves=st.integers(min_value=1, max_value=4))
    def life_goes_on(self, moves: int) -> None:
        for _ in range(moves):
            self.world.moves()

    # --- time and the surroundings --------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 2.0, 6.0, 31.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_time(self.world.now + seconds)

    @rule(share=shares, foreign=shares, stalled=st.booleans(), readings=st.integers(min_value=1, max_value=3))
    def memory_is_read(self, share: float, foreign: float, readings: int, *, stalled: bool) -> None:
        free_bytes, foreign_bytes = int((1 - share) * DEVICE_BYTES), int(foreign * share * DEVICE_BYTES)
        for _ in range(readings):
            self.world.feed(MemoryRead(self.world.now, share, free_bytes, stalled, foreign_bytes=foreign_bytes))
            self.world.pass_time(self.world.now + 1.0)

    @rule(
        what=st.sampled_from(["register", "forget", "limit"]),
        name=names,
        large=st.booleans(),
        pick=picks,
        its=traits,
    )
    def surroundings_change(self, what: str, name: str, pick: int, its: Traits, *, large: bool) -> None:
        now = self.world.now
        if what == "register":
            shape, ctx = (LARGE, 1000) if large else (SMALL, 2048)
            self.world.feed(ModelRegistered(now, name or "a", shape, ctx, its, server=SERVERS.get(name, "")))
        elif what == "forget":
            self.requests += 1
            self.world.feed(ForgetAsked(now, self.requests, name))
        else:
            self.world.feed(LimitRead(now, (4, 4, 4, 2, 1)[pick % 5] * GIB))

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
            stale += [WorkerMeasured(now, worker, 77), WorkerParked(now, worker, 77)]
            stale += [TimerFired(now, Timer(Clock.IDLE, worker))]
        for request in list(world.outcomes)[-3:]:
            stale += [GenerationEnded(now, request), RequestAbandoned(now, request, CRASH)]
            stale += [TimerFired(now, Timer(clock, request)) for clock in (Clock.DEADLINE, Clock.CANCEL)]
        event = stale[pick % len(stale)]
        assert step(world.state, event) == (world.state, ())

    def teardown(self) -> None:
        """Every story ends well: all are answered, the daemon can stop, and nothing is charged any more."""
        self.world.rest(loads_fail=self.loads_fail_in_the_end)
        self.world.stop()
        self.world.rest()
        assert self.world.exited
        assert not self.world.workers
        assert budget.charged(self.world.state.models.values()) == 0
        assert not self.world.timers
        late = Ticket(self.requests + 1, 1, Want.INFER, "", self.world.now)
        self.world.feed(RequestArrived(self.world.now, late))
        assert late.request in self.world.outcomes


AnyStory.TestCase.settings = settings(
    max_examples=2000 if THOROUGH else 300,
    stateful_step_count=100 if THOROUGH else 60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestAnyStory = pytest.mark.timeout(600)(AnyStory.TestCase)
