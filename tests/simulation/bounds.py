"""What a good residency manager owes its clients and its device over time; `check` in the core sees one state only.

    waiting     whoever waits longest for a load has it begun within two handovers; nobody waits longer than it takes
                to serve a full line, one residency of each model after the other; a deadline is kept to the grace
    running     an answer is cut off for want of memory in an EMERGENCY only
    loads       none begins while the device is short of memory, none without the room that strict rules ask for, and
                not one after the other without anybody being served
    guard       after an eviction it waits, unless the pressure stays or comes back and lasts

A handover: patience, the longest answer (or the time until a hung worker is found out), an unload, a load, and a
rollback's load. Used by `simulator` after each step; raises AssertionError.
"""

from dataclasses import dataclass, field

from h2qd.core import budget
from h2qd.core.effects import Complete, Effect, Publish, Refuse, ResumeWorker, StartWorker, TellResident
from h2qd.core.events import Event, MemoryRead
from h2qd.core.guard import Level
from h2qd.core.loads import needs_load
from h2qd.core.records import State
from h2qd.core.states import Status
from h2qd.core.turn import worker_of
from tests.simulation.device import Device
from tests.simulation.setting import HANG_S, LOAD_HANG_S, LOAD_S_MAX, STOP_S_MAX, WORK_S_MAX, Setting, Weather
from tests.world import World

_SLACK_S = 1.0
_USELESS_LOADS_MAX = {Weather.CALM: 12, Weather.PRESSED: 12, Weather.WILD: 60}


@dataclass
class Bounds:
    """The bounds of one life of the daemon, and how near it came to them."""

    setting: Setting
    device: Device
    useless_loads: int = 0
    longest_wait_s: float = 0.0
    longest_turn_s: float = 0.0
    evicted_at: float | None = None
    eased_at: float | None = None
    pressed_at: float | None = None
    oldest: tuple[int, float] | None = None
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def handover_s(self) -> float:
        """The longest that memory takes to change hands."""
        rules, wild = self.setting.rules, self.setting.weather is Weather.WILD
        work_s = rules.patience_s + max(WORK_S_MAX, rules.cancel_grace_s) + (HANG_S if wild else 0.0)
        load_s = LOAD_S_MAX + (LOAD_HANG_S if wild else 0.0)
        return work_s + STOP_S_MAX + 2 * load_s

    @property
    def wait_s(self) -> float:
        """The longest that a request without a deadline waits."""
        rules = self.setting.rules
        residencies = -(-rules.queue_max // rules.slots) + 1
        return residencies * len(self.setting.subjects) * self.handover_s

    def follow(self, world: World, before: State, event: Event, effects: tuple[Effect, ...]) -> None:
        """Look at one step."""
        for effect in effects:
            match effect:
                case StartWorker() | ResumeWorker():
                    self._load_begins(world, effect)
                case Complete() | TellResident():
                    self.useless_loads = 0
                    self._answered(world, effect.request)
                case Refuse():
                    self._refused(world, before, effect)
                case Publish(event="memory.relieved"):
                    self._relieved(world, before, effect)
                case _:
                    pass
        if isinstance(event, MemoryRead):
            self._pressure(world)
            self._waits(world)

    # --- loads ----------------------------------------------------------------------------------------

    def _load_begins(self, world: World, effect: StartWorker | ResumeWorker) -> None:
        state = world.state
        assert state.guard.admits_loads, f"a load begins at level {state.guard.level.name}"
        self._count("resumes" if isinstance(effect, ResumeWorker) else "loads")
        self._count("degraded", bool(effect.terms.less))
        self.useless_loads += 1
        most = _USELESS_LOADS_MAX[self.setting.weather]
        assert self.useless_loads <= most, f"{self.useless_loads} loads in a row served nobody"
        if state.rules.strict:
            self._has_room(world, effect)

    def _has_room(self, world: World, effect: StartWorker | ResumeWorker) -> None:
        """Whether the device has the memory; what moved since the last reading, the buffer is for."""
        if self.setting.temper.jump:
            return
        stay = [m for m in budget.others(world.state, effect.model) if m.status is not Status.UNLOADING]
        holdings = (self.device.holdings[worker_of(m)].at(world.now) for m in stay)
        to_grow = budget.charged(stay) - sum(holdings)
        held_bytes = world.state.models[effect.model].held_bytes
        spare = self.device.available(world.now) + held_bytes - to_grow
        assert effect.terms.planned_bytes <= spare, (
            f"{effect.model} is to take {effect.terms.planned_bytes} bytes, and {spare} are there"
        )

    # --- answers --------------------------------------------------------------------------------------

    def _answered(self, world: World, request: int) -> None:
        ticket = world.tickets[request]
        waited_s = world.granted_at.get(request, world.now) - ticket.since
        self.longest_wait_s = max(self.longest_wait_s, waited_s)
        self._count("answered")

    def _refused(self, world: World, before: State, effect: Refuse) -> None:
        ran = effect.request in before.running
        self._count(f"refused {effect.fault.code}")
        if ran and effect.fault.code == "memory_pressure":
            assert world.state.guard.level is Level.EMERGENCY, "an answer was cut off though it was no emergency"
            self._count("cut off")

    def _waits(self, world: World) -> None:
        rules, now = self.setting.rules, world.now
        for ticket in world.open.values():
            if ticket.deadline is not None:
                late_s = now - ticket.deadline
                assert late_s <= rules.cancel_grace_s + _SLACK_S, f"{ticket} is {late_s:.1f} s late"
            elif ticket.request not in world.granted_at:
                assert now - ticket.since <= self.wait_s, f"{ticket} waits for {now - ticket.since:.0f} s"
        state = world.state
        oldest = next((t.request for t in state.waiting if needs_load(state.models[t.model], t)), None)
        if oldest is None or self.oldest is None or self.oldest[0] != oldest:
            self.oldest = None if oldest is None else (oldest, now)
            return
        turn_s = now - self.oldest[1]
        self.longest_turn_s = max(self.longest_turn_s, turn_s)
        assert turn_s <= 2 * self.handover_s, f"request {oldest} is next, for {turn_s:.0f} s"

    # --- the guard ------------------------------------------------------------------------------------

    def _pressure(self, world: World) -> None:
        if world.state.guard.level >= Level.CRITICAL:
            self.pressed_at = world.now if self.pressed_at is None else self.pressed_at
        else:
            self.pressed_at = None

    def _relieved(self, world: World, before: State, effect: Publish) -> None:
        what, now, rules = str(effect.data["what"]), world.now, self.setting.rules.guard
        self._count(what)
        if what != "evict idle":
            return
        last, self.evicted_at = self.evicted_at, now
        if last is None or world.state.guard.level is Level.EMERGENCY or now - last >= rules.calm_s:
            return
        pressed_at = now if self.pressed_at is None else self.pressed_at
        lasts = pressed_at <= last or now - pressed_at >= rules.dwell_s
        assert lasts, f"the guard evicts {effect.model} {now - last:.1f} s after its last eviction, {before.guard}"

    def _count(self, what: str, so: bool = True) -> None:
        if so:
            self.counts[what] = self.counts.get(what, 0) + 1
