"""Simulated days: closed-loop clients over minutes of virtual time, and the bounds that must hold for each of them.

A load takes 3 s, an unload 0.5 s, an answer as long as its client's requests take. Nothing here waits for real. The
device has room for one model at a time, unless a test says otherwise.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import pytest

from h2qd.core.effects import Clock, Complete, Refuse, TellResident
from h2qd.core.events import LimitRead, ModelRegistered
from h2qd.core.records import Rules, Ticket, Want
from tests.playbook import CTX, GIB, SHAPE
from tests.world import World

LOAD_S = 3.0
UNLOAD_S = 0.5


@dataclass(frozen=True)
class Client:
    """Asks one model again and again, `pause_s` after each answer; each answer takes `work_s`."""

    number: int
    model: str
    work_s: float
    pause_s: float = 0.0
    at_once: int = 1
    """How many requests it keeps in flight."""

    new_each_time: bool = False
    """Whether each of its requests comes from a client never seen before, as from a terminal tool."""


@dataclass
class Day:
    """A world with a calendar."""

    rules: Rules
    clients: tuple[Client, ...] = ()
    limit_bytes: int = 2 * GIB
    world: World = field(init=False)
    calendar: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    owners: dict[int, Client] = field(default_factory=dict)
    work_s: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.world = World(self.rules)
        self._entries = 0
        self._seen: set[object] = set()
        self._outcomes_seen = 0
        self.world.feed(LimitRead(0.0, self.limit_bytes))
        for model in ("a", "b", "c"):
            self.world.feed(ModelRegistered(0.0, model, SHAPE, CTX))
        for client in self.clients:
            for _ in range(client.at_once):
                self._ask(client)
        self._arrange()

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Put something into the calendar."""
        self._entries += 1
        heapq.heappush(self.calendar, (when, self._entries, what))

    def ask(self, want: Want, model: str, *, work_s: float = 0.0, client: int = 900) -> int:
        """One request, now; its number."""
        request = 1 + len(self.world.tickets)
        self.work_s[request] = work_s
        self.world.ask(Ticket(request, client, want, model, self.world.now))
        return request

    def run(self, until: float) -> None:
        """Live until then."""
        while self.calendar and self.calendar[0][0] <= until:
            when, _, what = heapq.heappop(self.calendar)
            self.world.pass_time(when)
            self._arrange()
            what()
            self._arrange()
        self.world.pass_time(until)

    def waited(self, client: Client) -> list[float]:
        """How long each answered request of a client took from its arrival to its grant, in s."""
        world = self.world
        granted = [r for r, owner in self.owners.items() if owner is client and r in world.granted_at]
        return [world.granted_at[r] - world.tickets[r].since for r in granted]

    def answers(self, client: Client) -> int:
        """How many of a client's requests were answered."""
        return sum(isinstance(self.world.outcomes.get(r), Complete) for r, o in self.owners.items() if o is client)

    def _ask(self, client: Client) -> None:
        number = 1000 + len(self.world.tickets) if client.new_each_time else client.number
        self.owners[1 + len(self.world.tickets)] = client
        self.ask(Want.INFER, client.model, work_s=client.work_s, client=number)

    def _arrange(self) -> None:
        """Give everything that is under way a date for its end, once; timers have theirs already."""
        world = self.world
        for timer, at in world.timers.items():
            self._once(("timer", timer), at, _nothing)
        for worker in world.workers.values():
            if worker.leaving:
                self._once(("gone", worker.number), world.now + UNLOAD_S, partial(world.exits, worker))
            elif not worker.ready:
                self._once(("load", worker.number), world.now + LOAD_S, partial(self._loaded, worker.number))
        for generation in world.generations.values():
            request = generation.request
            self._once(("end", request), world.now + self.work_s[request], partial(self._ended, request))
        new = list(islice(world.outcomes, self._outcomes_seen, None))
        self._outcomes_seen += len(new)
        for request in new:
            client = self.owners.get(request)
            if client is not None:
                self.at(world.now + client.pause_s, partial(self._ask, client))

    def _once(self, key: object, when: float, what: Callable[[], None]) -> None:
        if key not in self._seen:
            self._seen.add(key)
            self.at(when, what)

    def _loaded(self, number: int) -> None:
        worker = self.world.workers.get(number)
        if worker is not None and not worker.leaving:
            self.world.load_ends(worker)

    def _ended(self, request: int) -> None:
        generation = self.world.generations.get(request)
        if generation is not None:
            self.world.generated(generation)


def _nothing() -> None:
    """What a timer's entry does: by then the clock has moved and the timer has gone off."""


def handover_s(rules: Rules, longest_work_s: float) -> float:
    """The longest that a model which is next in line waits for the memory of the one before, by design."""
    return rules.patience_s + longest_work_s + UNLOAD_S + LOAD_S


@pytest.mark.parametrize("want", [Want.RESIDENT, Want.INFER])
@pytest.mark.parametrize("work_s", [0.2, 1.7, 7.0])
@pytest.mark.parametrize(("patience_s", "slots"), [(0.0, 1), (2.0, 1), (2.0, 3)])
def test_traffic_without_a_gap_does_not_keep_another_model_out(
    want: Want, work_s: float, patience_s: float, slots: int
) -> None:
    """Five clients never leave the old model idle; who asks for the new one has it within the bound all the same."""
    rules = Rules(patience_s=patience_s, slots=slots)
    clients = tuple(Client(number, "a", work_s * (1 + number / 10), at_once=2) for number in range(5))
    day = Day(rules, clients)
    day.run(until=60.0)
    answered_before = sum(map(day.answers, clients))
    request = day.ask(want, "b", work_s=0.1)
    day.run(until=60.0 + handover_s(rules, work_s * 1.4))
    assert request in (day.world.granted_at if want is Want.INFER else day.world.outcomes)
    if want is Want.RESIDENT:
        assert isinstance(day.world.outcomes[request], TellResident)
    day.run(until=150.0)
    assert sum(map(day.answers, clients)) > answered_before, "the old model's clients are served again after"


def test_two_crowds_share_the_device_and_nobody_waits_longer_than_the_bound() -> None:
    """Each side always has work. Neither starves, and a residency is worth its load: patience is used."""
    rules = Rules(patience_s=4.0)
    left = tuple(Client(number, "a", 0.5) for number in range(3))
    right = tuple(Client(10 + number, "b", 0.5) for number in range(3))
    day = Day(rules, left + right)
    day.run(until=1800.0)
    there_and_back_s = 2 * handover_s(rules, 0.5)
    for client in left + right:
        assert max(day.waited(client)) <= there_and_back_s + len(left) * 0.5
        assert day.answers(client) > 200
    assert day.world.loads <= 1800.0 / (rules.patience_s + UNLOAD_S + LOAD_S) + 1
    total = sum(map(day.answers, left + right))
    assert total >= 1800.0 / handover_s(rules, 0.5) * (rules.patience_s / 0.5) * 0.9


@pytest.mark.parametrize("patience_s", [0.0, 4.0])
def test_where_there_is_room_for_both_a_crowd_is_served_while_the_other_model_loads(patience_s: float) -> None:
    """One model at a time is the rule, but memory for two: a load costs its time, and nobody's work."""
    left = tuple(Client(number, "a", 0.5) for number in range(3))
    right = tuple(Client(10 + number, "b", 0.5) for number in range(3))
    tight, roomy = (Day(Rules(patience_s=patience_s), left + right, limit_bytes=gib * GIB) for gib in (2, 4))
    for day in (tight, roomy):
        day.run(until=900.0)
    answers = [sum(map(day.answers, left + right)) for day in (tight, roomy)]
    waits = [max(max(day.waited(client)) for client in left + right) for day in (tight, roomy)]
    assert answers[1] > 1.5 * answers[0]
    assert waits[1] < waits[0]


def test_where_all_fit_nobody_waits_for_a_load_twice() -> None:
    clients = tuple(Client(number, model, 1.0) for number, model in enumerate(("a", "b", "c", "a", "b", "c")))
    day = Day(Rules(exclusive=False), clients, limit_bytes=8 * GIB)
    day.run(until=900.0)
    assert day.world.loads == 3
    for client in clients:
        assert max(day.waited(client)[1:]) <= 1.0


def test_three_models_in_turn() -> None:
    clients = tuple(Client(number, model, 1.0) for number, model in enumerate(("a", "b", "c", "a", "b", "c")))
    day = Day(Rules(), clients)
    day.run(until=900.0)
    for client in clients:
        assert max(day.waited(client)) <= 3 * handover_s(Rules(), 1.0)


def test_two_clients_that_alternate_cost_a_load_for_each_answer_and_no_more() -> None:
    """The worst case of one slot and no pause: each answer takes a whole handover, and the next is the other's."""
    left, right = Client(1, "a", 1.0, pause_s=0.1), Client(2, "b", 1.0, pause_s=0.1)
    day = Day(Rules(), (left, right))
    day.run(until=900.0)
    assert abs(day.answers(left) - day.answers(right)) <= 1
    assert day.answers(left) >= 900.0 / (2 * (1.0 + UNLOAD_S + LOAD_S)) - 1


def test_a_flooder_takes_turns_with_closed_loops() -> None:
    flooder = Client(1, "a", 1.0, pause_s=0.0, at_once=60)
    others = (Client(2, "a", 1.0), Client(3, "a", 1.0, pause_s=0.7))
    day = Day(Rules(), (flooder, *others))
    day.run(until=600.0)
    for client in others:
        assert max(day.waited(client)[3:]) <= 3.0, "at most the work under way and one turn of each other client"
    assert day.answers(others[0]) >= 0.3 * sum(map(day.answers, (flooder, *others)))


def test_an_endless_row_of_new_clients_does_not_keep_a_known_one_waiting() -> None:
    """More new clients than can be served: the line is full all the time, and the known client has its turn."""
    known = Client(1, "a", 1.0)
    tools = tuple(Client(10 + number, "a", 1.0, pause_s=0.01, new_each_time=True) for number in range(20))
    day = Day(Rules(), (known, *tools))
    day.run(until=900.0)
    assert max(day.waited(known)) <= 1.0 * (len(tools) + 2)
    assert day.answers(known) >= 900 / (len(tools) + 2) - 2


def test_clients_that_lose_patience_sooner_than_the_switch_does_not_disturb_the_others() -> None:
    """They never get their model, for the old one is never idle; but its clients lose nothing by it."""
    busy = (Client(1, "a", 1.5), Client(2, "a", 1.5))
    day = Day(Rules(patience_s=2.0), busy)
    day.run(until=10.0)
    before = sum(map(day.answers, busy))
    for _ in range(50):
        request = day.ask(Want.INFER, "b")
        day.run(until=day.world.now + 1.0)
        day.world.give_up(request)
        assert isinstance(day.world.outcomes[request], Refuse)
    assert sum(map(day.answers, busy)) - before >= 50 / 1.5 - 1
    assert not [timer for timer in day.world.timers if timer.clock is Clock.PATIENCE]
