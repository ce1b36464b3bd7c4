"""Streams through the whole daemon: against llama.cpp's own server, the engine alone, and what they cost beside.

All in turns, on contexts of the same size; the clients of both are threads of this process. The engine alone runs in
a process of its own, as in `batch`. The supervisor's share is of one core. Peaks are of what a process had resident
(VmHWM), the pages of the model's file among it. Both sides are as they come, so ours guesses where a stream is alone.
Without `H2Q_LLAMA_SERVER` the rows of the server are left out.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from h2qctl import Client
from h2qd.runtime.meter import parse_sizes
from tests.bench import daemons, figures
from tests.bench.batch import process
from tests.bench.figures import Bound, Row
from tests.bench.server import GREEDY, SHARE_TOKENS, SLOTS, TOKENS, Run, Server, prompts, served, take, together
from tests.bench.setting import Setting, rounds

ENGINE_RATIO_MIN = 0.97
SERVER_RATIO_MIN = {1: 1.10, 8: 1.15}
SAMPLED_RATIO_MIN = 1.05
FIRST_RATIO_MAX = 0.9
SHARE_PERCENT_MAX = 4.0
PEAK_RATIO_MAX = 0.75
_ROUNDS = 8
_SAMPLED: Mapping[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}


def bench(setting: Setting) -> Iterator[Row]:
    """Rates in tokens/s, times in ms, the share in %, peaks in MB."""
    config = f"model: {{slots: {SLOTS}, ctx: {SHARE_TOKENS}}}"
    with (
        contextlib.ExitStack() as stack,
        daemons.running(setting.folder, {"demo": setting.model}, config) as daemon,
        daemon.client() as client,
        served(setting.model) as peer,
    ):
        client.load("demo")
        crowd = _Crowd([stack.enter_context(daemon.client()) for _ in range(SLOTS)])
        fresh = prompts()
        if peer is not None:
            for count in (1, 2, 4, SLOTS):
                yield from _against_server(crowd, peer, fresh, count)
            for count in (1, SLOTS):
                yield _sampled(crowd, peer, fresh, count)
            yield _plain(crowd, peer, fresh)
        yield from _against_engine(crowd, daemon.supervisor(), setting.model, fresh)
        worker = next(row.pid for row in client.ps().models)
        ours_mb = _peak_mb(worker or 0)
        peak = f"worker's peak after {SLOTS} streams"
        if peer is None:
            yield Row(peak, "MB", ours_mb)
        else:
            yield Row(f"{peak}, against llama-server", "MB", ours_mb, _peak_mb(peer.pid), bound=Bound(PEAK_RATIO_MAX))


class _Crowd:
    """Clients of the daemon, each over a connection of its own."""

    def __init__(self, clients: Sequence[Client]) -> None:
        self._clients = clients

    def rate(self, prompts: Sequence[str], sampling: Mapping[str, Any] = GREEDY) -> Run:
        """All at once."""
        firsts = [0.0] * len(prompts)

        def ask(at: int) -> None:
            sampler: Any = dict(sampling)
            stream = self._clients[at].stream(prompts[at], "demo", max_tokens=TOKENS, ignore_eos=True, **sampler)
            for piece, _ in enumerate(stream):
                if piece == 0:
                    firsts[at] = time.perf_counter()

        began, wall_ms = together([partial(ask, at) for at in range(len(prompts))])
        return Run(wall_ms, [(first - began) * 1000 for first in firsts])


def _against_server(crowd: _Crowd, peer: Server, fresh: Iterator[str], count: int) -> Iterator[Row]:
    ours, theirs = _in_turns(crowd, peer, fresh, count, GREEDY)
    what = f"{count} stream{'s' if count > 1 else ''} of {TOKENS} tokens through the daemon"
    limit = SERVER_RATIO_MIN.get(count)
    bound = Bound(limit, at_least=True) if limit else None
    rates, floors = [run.rate for run in ours], [run.rate for run in theirs]
    yield figures.paired(f"{what}, against llama-server", "tokens/s", rates, floors, bound)
    yield figures.paired(
        f"{what}: last first token, against llama-server",
        "ms",
        [max(run.first_ms) for run in ours],
        [max(run.first_ms) for run in theirs],
        Bound(FIRST_RATIO_MAX) if count == 1 else None,
    )


def _sampled(crowd: _Crowd, peer: Server, fresh: Iterator[str], count: int) -> Row:
    ours, theirs = _in_turns(crowd, peer, fresh, count, _SAMPLED)
    what = f"{count} stream{'s' if count > 1 else ''} at temperature 0.8 through the daemon, against llama-server"
    bound = Bound(SAMPLED_RATIO_MIN, at_least=True)
    return figures.paired(what, "tokens/s", [run.rate for run in ours], [run.rate for run in theirs], bound)


def _plain(crowd: _Crowd, peer: Server, fresh: Iterator[str]) -> Row:
    """What of it is the engine's own, without guesses."""
    ours, theirs = _in_turns(crowd, peer, fresh, 1, {**GREEDY, "speculate": False})
    what = f"1 stream of {TOKENS} tokens without speculation, against llama-server"
    return figures.paired(what, "tokens/s", [run.rate for run in ours], [run.rate for run in theirs])


def _in_turns(
    crowd: _Crowd, peer: Server, fresh: Iterator[str], count: int, sampling: Mapping[str, Any]
) -> tuple[list[Run], list[Run]]:
    runs: dict[_Crowd | Server, list[Run]] = {crowd: [], peer: []}
    for side in runs:
        side.rate(take(fresh, count), sampling)
    for turn in rounds(_ROUNDS, 60):
        for side in (crowd, peer) if turn % 2 else (peer, crowd):
            runs[side].append(side.rate(take(fresh, count), sampling))
    return runs[crowd], runs[peer]


def _against_engine(crowd: _Crowd, supervisor: psutil.Process, model: Path, fresh: Iterator[str]) -> Iterator[Row]:
    rates, alone, shares = [], [], []
    with process("engine", model) as engine:
        for turn in rounds(1 + _ROUNDS, 90):
            before = sum(supervisor.cpu_times()[:2])
            run = crowd.rate(take(fresh, SLOTS))
            share = 100 * (sum(supervisor.cpu_times()[:2]) - before) / run.wall_ms * 1000
            lone = engine.rate(take(fresh, SLOTS)).rate
            if turn > 0:  # the first warms up
                rates.append(run.rate)
                alone.append(lone)
                shares.append(share)
    what = f"{SLOTS} streams of {TOKENS} tokens through the daemon, against the engine alone"
    yield figures.paired(what, "tokens/s", rates, alone, Bound(ENGINE_RATIO_MIN, at_least=True))
    mean = sum(shares) / len(shares)  # processor time is told in steps of 10 ms
    yield Row(f"supervisor's share while {SLOTS} streams run", "%", mean, bound=Bound(SHARE_PERCENT_MAX, of="figure"))


def _peak_mb(pid: int) -> float:
    return parse_sizes(Path("/proc", str(psutil.Process(pid).pid), "status").read_text())["VmHWM"] / 1e6
