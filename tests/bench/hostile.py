"""What a hostile client costs the others: the status round trips of another client, and the supervisor's memory.

Each attack runs in a process of its own, against a daemon of its own. Round trips begin at a fixed pace and count
from when they were due, so a stall is not told only once. Memory is counted from before the attack: its peak, and
what is left soon after. A connection costs libzmq tens of kilobytes before the daemon hears of it, so for crowds the
peak is compared with that of a plain ROUTER, and only what is left is bounded in MB.
"""

import select
import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from h2qctl import Client
from tests.bench import daemons, figures, opponents
from tests.bench.figures import Bound, Row
from tests.bench.setting import Setting

FRAMES = 1_000_000
CONNECTIONS = 1000
P99_MS_MAX = 50.0
GROWTH_MB_MAX = 2.0
CROWD_RATIO_MAX = 2.0
_QUIET_CALLS = 500
_AFTER_CALLS = 600
_PACE_S = 0.005
_STAY_S = 4.0
"""How long connections stay once all are made: longer than the daemon waits for a handshake."""

_FLOODS = (
    (f"{FRAMES:,} random frames", "frames"),
    (f"{FRAMES:,} random frames, nothing read", "frames-unread"),
)
_CROWDS = (
    (f"{CONNECTIONS:,} connections without a word", "strangers"),
    (f"{CONNECTIONS:,} clients that stay mute", "mutes"),
)


@dataclass(frozen=True, slots=True)
class Toll:
    """What an attack cost: round trips in ms before and during it, memory in MB at its peak and after it."""

    quiet: list[float]
    trips: list[float]
    peak_mb: float
    left_mb: float


def bench(setting: Setting) -> Iterator[Row]:
    """Round trips in ms, memory in MB (10^6 bytes)."""
    growth = Bound(GROWTH_MB_MAX, of="figure")
    for what, kind in _FLOODS:
        toll = _attacked(setting.folder / kind, kind, FRAMES, 0)
        yield from _round_trips(what, toll)
        yield Row(f"{what}: memory at its peak", "MB", toll.peak_mb, bound=growth)
    for what, kind in _CROWDS:
        toll = _attacked(setting.folder / kind, kind, CONNECTIONS, _STAY_S)
        yield from _round_trips(what, toll)
        floor = _bare_growth_mb(setting.folder, kind)
        yield Row(f"{what}: memory at its peak", "MB", toll.peak_mb, floor, bound=Bound(CROWD_RATIO_MAX))
        yield Row(f"{what}: memory soon after", "MB", toll.left_mb, bound=growth)


def _round_trips(what: str, toll: Toll) -> Iterator[Row]:
    yield Row(f"{what}: status p50", "ms", statistics.median(toll.trips), statistics.median(toll.quiet))
    tail, floor = (figures.percentile(trips, 99) for trips in (toll.trips, toll.quiet))
    yield Row(f"{what}: status p99", "ms", tail, floor, bound=Bound(P99_MS_MAX, of="figure"))


def _attacked(folder: Path, kind: str, count: int, stay_s: float) -> Toll:
    with daemons.running(folder, {}) as daemon, daemon.client() as client:
        quiet = list(islice(paced(client), _QUIET_CALLS))
        before = daemons.rss(daemon.process.pid)
        with opponents.child("tests.bench.attack_process", daemon.socket, kind, str(count)) as attacker:
            trips, peak = _watch(daemon, client, attacker, stay_s)
        for _ in islice(paced(client), _AFTER_CALLS):
            left = daemons.rss(daemon.process.pid)
    return Toll(quiet, trips, max(0, peak - before) / 1e6, max(0, left - before) / 1e6)


def _watch(
    daemon: daemons.Daemon, client: Client, attacker: "subprocess.Popen[str]", stay_s: float
) -> tuple[list[float], int]:
    """Round trips in ms until `stay_s` after an attacker was done, and the supervisor's largest RSS in bytes."""
    assert attacker.stdout is not None
    trips: list[float] = []
    peak = 0
    opponents.heard(attacker, "begun")
    done_at: float | None = None
    for trip in paced(client):
        trips.append(trip)
        peak = max(peak, daemons.rss(daemon.process.pid))
        if done_at is None and select.select([attacker.stdout], [], [], 0)[0]:
            opponents.heard(attacker, "done")
            done_at = time.monotonic()
        if done_at is not None and time.monotonic() - done_at >= stay_s:
            break
    return trips, peak


def _bare_growth_mb(folder: Path, kind: str) -> float:
    """What the connections cost the plain echo, in MB."""
    with opponents.echo(folder / "bare.sock", [1]) as bare:
        before = daemons.rss(bare.process.pid)
        with opponents.child("tests.bench.attack_process", bare.path, kind, str(CONNECTIONS)) as attacker:
            opponents.heard(attacker, "begun")
            opponents.heard(attacker, "done")
            time.sleep(1)  # its thread may be behind with those that said nothing
            return max(0, daemons.rss(bare.process.pid) - before) / 1e6


def paced(client: Client) -> Iterator[float]:
    """Round trips without end, one due each `_PACE_S`: ms from then to the answer."""
    due = time.perf_counter()
    while True:
        time.sleep(max(0, due - time.perf_counter()))
        client.status()
        yield (time.perf_counter() - due) * 1000
        due += _PACE_S
