"""Simulated days, 50,000 events of fixed seeds; `python -m tests.simulation` goes on from there."""

import random

import pytest

from h2qd.core.effects import StartWorker
from h2qd.core.events import MemoryRead
from tests.simulation.device import GIB, TOTAL_BYTES, Device, Holding, Temper
from tests.simulation.setting import Weather, draw
from tests.simulation.simulator import DefectError, Life, Simulation

EVENTS = 50_000
SEEDS = range(101, 107)


@pytest.mark.parametrize("weather", Weather)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_core_keeps_its_bounds(seed: int, weather: Weather) -> None:
    simulation = Simulation(draw(seed, weather))
    simulation.run(EVENTS // (len(SEEDS) * len(Weather)))
    assert simulation.counts["answered"] > 0, "nobody was served, so nothing was tried"
    assert simulation.counts["loads"] > 0


def test_a_seed_is_the_same_story_each_time() -> None:
    first, second = (Simulation(draw(7, Weather.WILD)) for _ in range(2))
    for simulation in (first, second):
        simulation.run(1_000)
    assert (first.counts, first.virtual_s, first.memory) == (second.counts, second.virtual_s, second.memory)
    assert first.learned == second.learned


def test_what_a_life_learned_and_remembered_is_what_the_next_begins_with() -> None:
    simulation = Simulation(draw(3, Weather.CALM))
    simulation.run(2_000)
    assert simulation.lives == 1
    assert any(simulation.learned.values())
    life = Life(simulation)
    assert {name: model.lessons for name, model in life.world.state.models.items()} == simulation.learned
    assert life.world.state.active == simulation.memory.active


def test_a_broken_story_tells_its_seed_its_event_and_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A core that forgets a model's memory is found out, and how it came to that can be read."""

    monkeypatch.setattr("h2qd.core.budget.charge", lambda _: 0)
    simulation = Simulation(draw(1, Weather.PRESSED))
    with pytest.raises(DefectError) as told:
        simulation.run(20_000)
    text = str(told.value)
    assert "python -m tests.simulation --seed" in text
    assert MemoryRead.__name__ in text
    assert StartWorker.__name__ in text
    assert "m0: " in text
    assert len(text.splitlines()) < 500


def test_a_device_gives_back_what_it_took_and_kills_the_largest_first() -> None:
    device = Device(random.Random(1), Temper(0, GIB, GIB))
    free = device.available(0.0)
    device.holdings[1] = Holding(0.0, 2.0, 0, 2 * GIB)
    device.holdings[2] = Holding(0.0, 0.0, GIB, GIB)
    assert free - device.available(1.0) == 2 * GIB
    assert (device.largest(0.5), device.largest(2.0)) == (2, 1)
    assert device.used_share(2.0) == 1 - device.available(2.0) / TOTAL_BYTES
    device.holdings.clear()
    assert device.available(3.0) == free
