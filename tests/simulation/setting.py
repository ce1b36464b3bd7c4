"""The settings that a seed stands for: rules, models, how workers and the rest of the device behave.

There are three weathers. CALM: workers keep to their plans, and the other process leaves the budget and the buffer to
the models. PRESSED: workers keep to their plans, rules are strict, and the other process takes what models hold, but
slowly. In both the kernel may never have to kill. WILD: workers crash, hang and leak, the other process takes all at
once. Pure; used by `simulator`.
"""

import random
from dataclasses import dataclass
from enum import StrEnum

from h2qd.core.plan import ModelShape
from h2qd.core.records import Rules, Traits
from tests.simulation.device import DAEMON_BYTES, GIB, TOTAL_BYTES, Temper

LOAD_S_MAX = 12.0
WORK_S_MAX = 6.0
HANG_S = 20.0
"""A worker that gave no sign of life for so long is killed."""

LOAD_HANG_S = 30.0
"""A load that takes so long is given up by the runtime."""

STOP_S_MAX = 10.0
"""The kill ladder's last rung."""


class Weather(StrEnum):
    """How kind the world is."""

    CALM = "calm"
    PRESSED = "pressed"
    WILD = "wild"


@dataclass(frozen=True)
class Nature:
    """How a model's workers behave. Shares are of the plan; chances are per load, generation, or stop."""

    read_bytes_per_s: float
    loaded_share: float
    grown_share: float
    load_fails: float = 0.0
    load_hangs: float = 0.0
    crashes: float = 0.0
    hangs: float = 0.0
    leaks_bytes: int = 0
    stop_hangs: float = 0.0


@dataclass(frozen=True)
class Subject:
    """A model to be registered."""

    name: str
    shape: ModelShape
    ctx: int
    traits: Traits
    nature: Nature


@dataclass(frozen=True)
class Setting:
    """Everything that is drawn once."""

    seed: int
    weather: Weather
    rules: Rules
    limit_bytes: int
    temper: Temper
    subjects: tuple[Subject, ...]
    contained: bool


def draw(seed: int, weather: Weather) -> Setting:
    """The setting of a seed."""
    chance = random.Random(f"{seed} {weather}")
    exclusive = chance.random() < 0.4
    rules = Rules(
        exclusive=exclusive,
        strict=weather is Weather.PRESSED or chance.random() < 0.3,
        park_s=chance.choice([0.0, 0.0, 20.0, 300.0]),
        buffer_bytes=GIB // 2,
        patience_s=chance.choice([0.0, 2.0, 2.0, 5.0]),
        queue_max=chance.choice([8, 16, 64]),
        slots=chance.choice([1, 2, 4]),
    )
    limit_bytes = chance.choice([8, 10, 11]) * GIB
    # Below 80 % of the device: beyond, the guard keeps more free than the budget does.
    calm_bytes = int(0.78 * TOTAL_BYTES) - DAEMON_BYTES - limit_bytes
    temper = {
        Weather.CALM: Temper(0, max(0, calm_bytes), GIB, 0.01),
        Weather.PRESSED: Temper(0, TOTAL_BYTES - DAEMON_BYTES - GIB, TOTAL_BYTES // 400),
        Weather.WILD: Temper(0, TOTAL_BYTES - DAEMON_BYTES, TOTAL_BYTES // 50, 0.005),
    }[weather]
    subjects = tuple(_subject(chance, number, weather) for number in range(chance.randint(3, 9)))
    return Setting(seed, weather, rules, limit_bytes, temper, subjects, contained=chance.random() < 0.5)


def _subject(chance: random.Random, number: int, weather: Weather) -> Subject:
    gib = chance.choice([0.25, 0.5, 1.0, 2.0, 2.0, 4.0, 6.0])
    shape = ModelShape(
        tensor_bytes=int(gib * GIB),
        context_length=chance.choice([8192, 32768]),
        layers=chance.choice([16, 32]),
        embedding=2048,
        feed_forward=8192,
        vocabulary=32000,
        heads=(16,),
        kv_heads=(8,),
        key_length=128,
        value_length=128,
    )
    traits = Traits(
        degrade=chance.random() < 0.8,
        min_ctx=2048,
        variants=(f"m{number - 1}",) if number and chance.random() < 0.3 else (),
        priority=chance.choice([0, 0, 0, 1, 2]),
        ttl_s=chance.choice([0.0, 0.0, 15.0, 120.0]),
    )
    return Subject(f"m{number}", shape, chance.choice([4096, 8192]), traits, _nature(chance, gib, weather))


def _nature(chance: random.Random, gib: float, weather: Weather) -> Nature:
    read_bytes_per_s = max(chance.uniform(0.5, 3.0), gib / LOAD_S_MAX) * GIB
    grown = chance.uniform(0.8, 1.0)
    if weather is not Weather.WILD or chance.random() < 0.3:
        return Nature(read_bytes_per_s, grown - 0.05, grown)
    return Nature(
        read_bytes_per_s,
        grown - 0.05,
        grown + chance.choice([0.0, 0.1, 0.4]),
        load_fails=chance.choice([0.0, 0.1, 0.5]),
        load_hangs=0.02,
        crashes=chance.choice([0.0, 0.01, 0.1]),
        hangs=0.003,
        leaks_bytes=chance.choice([0, 0, GIB // 100]),
        stop_hangs=0.02,
    )
