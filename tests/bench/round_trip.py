"""A status round trip against a plain asyncio echo with answers of the same size: idle, and while a model generates.

The client library and the daemon together are bounded. The row "frames only" uses the echo's own client on the
daemon, and so tells how much of it is the daemon's. All three take turns in small blocks.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator

import zmq

from h2qctl import Client
from h2qd.wire.frames import Request, request_frames
from h2qd.wire.limits import PROTOCOL_VERSION
from tests.bench import daemons, figures, opponents
from tests.bench.figures import Bound, Row
from tests.bench.setting import Setting

RATIO_MAX = 2.5
_BLOCKS = 100
_CALLS = 40


def bench(setting: Setting) -> Iterator[Row]:
    """Round trips in µs."""
    frames = request_frames(Request(PROTOCOL_VERSION, 1, "daemon.status"))
    with (
        daemons.running(setting.folder, {"demo": setting.model}) as daemon,
        zmq.Context() as context,
        contextlib.closing(opponents.Wire(context, daemon.socket, frames)) as plain,
        daemon.client() as client,
    ):
        sizes = [len(frame) for frame in plain.ask()]
        with (
            opponents.echo(setting.folder / "echo.sock", sizes) as plainest,
            contextlib.closing(opponents.Wire(context, plainest.path, frames)) as echo,
        ):
            for load in ("idle", "generating"):
                with contextlib.nullcontext() if load == "idle" else generating(daemon):
                    yield from _rows(load, client, plain, echo)


def _rows(load: str, client: Client, plain: opponents.Wire, echo: opponents.Wire) -> Iterator[Row]:
    sides: tuple[Callable[[], object], ...] = (client.status, plain.ask, echo.ask)
    times: tuple[list[list[float]], ...] = ([], [], [])
    for _ in range(_BLOCKS):
        for side, blocks in zip(sides, times, strict=True):
            side()
            blocks.append([_microseconds(side) for _ in range(_CALLS)])
    ours, wire, floor = ([statistics.median(block) for block in blocks] for blocks in times)
    yield figures.paired(f"status, {load}, p50", "us", ours, floor, Bound(RATIO_MAX))
    yield figures.paired(f"status, {load}, p50, frames only", "us", wire, floor)
    tails = [figures.percentile((trip for block in blocks for trip in block), 99) for blocks in times]
    yield Row(f"status, {load}, p99", "us", tails[0], tails[2])


def _microseconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e6


@contextlib.contextmanager
def generating(daemon: daemons.Daemon) -> Iterator[None]:
    """The model "demo" streams to another client."""
    with opponents.child("tests.bench.generate_process", daemon.socket) as process:
        opponents.heard(process, "begun")
        yield
