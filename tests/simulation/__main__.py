"""Simulate: `python -m tests.simulation --events 1000000 --seed 7`. A story that breaks is printed, with its seed."""

import argparse
import sys
import time

from tests.simulation.setting import Weather, draw
from tests.simulation.simulator import DefectError, Simulation


def main() -> int:
    """Spread the events over seeds and weathers; 0 when everything held."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000, help="in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="the first seed (default: %(default)s)")
    parser.add_argument("--per-seed", type=int, default=20_000, help="events of each seed (default: %(default)s)")
    parser.add_argument("--weather", choices=[w.value for w in Weather], help="one only (default: all in turn)")
    asked = parser.parse_args()
    weathers = [Weather(asked.weather)] if asked.weather else list(Weather)
    done, seed, began = 0, asked.seed, time.monotonic()
    while done < asked.events:
        simulation = Simulation(draw(seed, weathers[seed % len(weathers)]))
        try:
            simulation.run(min(asked.per_seed, asked.events - done))
        except DefectError as defect:
            print(defect)
            return 1
        done += simulation.events
        tell(simulation, time.monotonic() - began, done)
        seed += 1
    return 0


def tell(simulation: Simulation, took_s: float, done: int) -> None:
    """One line of a seed: what it was, what happened most, how near the bounds came."""
    setting, counts = simulation.setting, simulation.counts
    most = ", ".join(f"{what} {count}" for what, count in counts.most_common(12))
    policy = "exclusive" if setting.rules.exclusive else "budget"
    print(
        f"{done:>8} events {took_s:>6.1f} s  seed {setting.seed} {setting.weather} {policy}: "
        f"{simulation.virtual_s:.0f} s virtual, wait {simulation.longest_wait_s:.0f} s, "
        f"turn {simulation.longest_turn_s:.0f} s, oom {simulation.oom_kills}; {most}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
