"""Simulated days: closed-loop clients over minutes of virtual time, and the bounds that must hold for each of them.

A load takes 3 s, an unload 0.5 s, an answer as long as its client's requests take. Nothing here waits for real.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from h2qd.core.effects import Clock, Complete, Refuse, TellResident
from h2qd.core.events import ModelRegistered
from h2qd.core.records import Rules, Ticket, Want
from tests.playbook import CTX, SHAPE
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
    world: World = field(init=False)
    calendar: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    owners: dict[int, Client] = field(default_factory=dict)
    work_s: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.world = World(self.rules)
        self._entries = 0
        self._seen: set[object] = set()
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
            self._once(("timer", timer), at, lambda: None)
        for worker in world.workers.values():
            if worker.leaving:
                self._once(("gone", worker.number), world.now + UNLOAD_S, lambda w=worker: world.exits(w))
            elif not worker.ready:
                self._once(("load", worker.number), world.now + LOAD_S, lambda w=worker: self._loaded(w.number))
        for generation in world.generations.values():
            request = generation.request
            self._once(("end", request), world.now + self.work_s[request], lambda r=request: self._ended(r))
        for request in list(world.outcomes):
            client = self.owners.get(request)
            if client is not None:
                self._once(("again", request), world.now + client.pause_s, lambda c=client: self._ask(c))

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
