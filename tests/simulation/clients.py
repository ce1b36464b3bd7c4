"""Clients with habits. Each asks, hears, thinks and asks again; some give up, are in a hurry, come in crowds, or
order models about.

A client knows the `Desk`, where it asks, and is told of each answer. Used by `simulator`. Invariant: whoever heard an
answer asks again some time, so the day never falls silent.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from h2qd.core.effects import Effect, Refuse
from h2qd.core.records import Want
from tests.simulation.setting import WORK_S_MAX, Setting, Weather


class Desk(Protocol):
    """Where clients ask."""

    def ask(self, client: "Client", want: Want, model: str, work_s: float, **wishes: Any) -> int:
        """One request; its number."""

    def give_up(self, request: int) -> None:
        """It is no longer wanted."""

    def pin(self, model: str, *, pinned: bool) -> None:
        """A pin, or its end."""

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        """Do something in a while."""


@dataclass
class Client:
    """Whoever asks. `think_s`: how long it thinks, on average."""

    number: int
    chance: random.Random
    models: tuple[str, ...]
    think_s: float
    work_s: float

    def begin(self, desk: Desk) -> None:
        """Start the day."""
        desk.later(self.chance.uniform(0.0, self.think_s), lambda: self.act(desk))

    def act(self, desk: Desk) -> None:
        """Ask for something."""
        self.infer(desk)

    def heard(self, desk: Desk, outcome: Effect) -> None:
        """One answer: think, then act again."""
        pause_s = self.chance.expovariate(1.0 / self.think_s)
        if isinstance(outcome, Refuse):
            pause_s += outcome.fault.retry_after_s or 0.5
        desk.later(pause_s, lambda: self.act(desk))

    def infer(self, desk: Desk, **wishes: Any) -> int:
        """One inference of its usual length."""
        work_s = min(WORK_S_MAX, self.chance.uniform(0.2, 2.0) * self.work_s)
        return desk.ask(self, Want.INFER, self.chance.choice(self.models), work_s, **wishes)


class Canceller(Client):
    """Loses its patience now and then."""

    def act(self, desk: Desk) -> None:
        request = self.infer(desk)
        if self.chance.random() < 0.5:
            desk.later(self.chance.uniform(0.0, 6.0), lambda: desk.give_up(request))


class Hasty(Client):
    """Has deadlines and priorities."""

    def act(self, desk: Desk) -> None:
        self.infer(desk, wait_s=self.chance.choice([0.0, 1.0, 5.0, 20.0]), priority=self.chance.choice([0, 1, 2]))


class Particular(Client):
    """Wants it so and not otherwise."""

    def act(self, desk: Desk) -> None:
        self.infer(
            desk,
            ctx=self.chance.choice([0, 2048, 4096, 8192]),
            kv_type=self.chance.choice(["", "", "f16", "q8_0"]),
            exact=self.chance.random() < 0.3,
        )


@dataclass
class Crowd(Client):
    """Comes all at once, from as many clients as never seen before, and hears nothing until the last is served."""

    size: int = 20
    out: int = 0
    members: int = 0

    def act(self, desk: Desk) -> None:
        self.out = self.size
        for _ in range(self.size):
            self.members += 1
            self.infer(desk, number=self.number * 1_000_000 + self.members)

    def heard(self, desk: Desk, outcome: Effect) -> None:
        self.out -= 1
        if self.out == 0:
            super().heard(desk, outcome)


class Switcher(Client):
    """Orders models about."""

    def act(self, desk: Desk) -> None:
        chance = self.chance
        force = chance.random() < 0.05
        desk.ask(
            self,
            Want.RESIDENT,
            chance.choice(self.models),
            0.0,
            ctx=chance.choice([0, 0, 0, 4096, 16384]),
            kv_type=chance.choice(["", "", "", "q8_0"]),
            exact=chance.random() < 0.2,
            activate=chance.random() < 0.7,
            force=force,
            reset=chance.random() < 0.2,
        )


class Unloader(Client):
    """Wants models cold."""

    def act(self, desk: Desk) -> None:
        desk.ask(self, Want.COLD, self.chance.choice(self.models), 0.0, force=self.chance.random() < 0.2)


class Restorer(Client):
    """The daemon itself as it starts: has back what was resident when it ended, and asks for nothing more."""

    def heard(self, desk: Desk, outcome: Effect) -> None:
        pass


class Pinner(Client):
    """Pins a model for a while, then none, also none that was pinned in an earlier life."""

    def act(self, desk: Desk) -> None:
        desk.pin(self.chance.choice(self.models), pinned=True)
        desk.later(self.chance.expovariate(1.0 / self.think_s), lambda: self.lets_go(desk))

    def lets_go(self, desk: Desk) -> None:
        for model in self.models:
            desk.pin(model, pinned=False)
        desk.later(self.chance.expovariate(0.2 / self.think_s), lambda: self.act(desk))


def guests(setting: Setting, chance: random.Random) -> list[Client]:
    """Who comes on such a day."""
    names = tuple(subject.name for subject in setting.subjects)
    numbers = iter(range(1, 1000))

    def one(kind: type[Client], think_s: float, models: tuple[str, ...] = names, **more: Any) -> Client:
        own = random.Random(chance.getrandbits(64))
        return kind(next(numbers), own, models, think_s, chance.uniform(0.3, 2.0), **more)

    def favourite() -> tuple[str, ...]:
        return (chance.choice(names),)

    clients = [one(Client, chance.choice([0.01, 0.5, 3.0]), favourite()) for _ in range(chance.randint(2, 8))]
    clients += [one(Client, 10.0), one(Client, 5.0, ("",)), one(Canceller, 2.0), one(Hasty, 2.0)]
    clients += [one(Particular, 15.0), one(Switcher, chance.choice([20.0, 60.0])), one(Unloader, 100.0)]
    clients += [one(Crowd, 120.0, favourite(), size=chance.choice([10, 40, 80]))]
    clients += [one(Pinner, 15.0)]
    if setting.weather is Weather.WILD:
        clients += [one(Canceller, 0.5), one(Switcher, 10.0)]
    return clients
