"""Eight streams through the whole daemon: against the engine alone, and what it costs beside.

In turns with the engine in a process of its own, as in `batch`, on a context of the same size. The supervisor's share
is of one core. Peaks are of what a process had resident (VmHWM), the pages of the model's file among it.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Thread

import psutil

from h2qctl import Client
from h2qd.runtime.meter import parse_sizes
from tests.bench import daemons, figures
from tests.bench.batch import SHARE_TOKENS, SLOTS, TOKENS, process, prompts, served, take
from tests.bench.figures import Bound, Row
from tests.bench.setting import Setting, rounds

ENGINE_RATIO_MIN = 0.97
SHARE_PERCENT_MAX = 4.0
PEAK_RATIO_MAX = 0.75
_ROUNDS = 8


def bench(setting: Setting) -> Iterator[Row]:
    """Rates in tokens/s, the share in %, peaks in MB."""
    fresh = prompts()
    rates, alone, shares = [], [], []
    config = f"model: {{slots: {SLOTS}, ctx: {SHARE_TOKENS}}}"
    with (
        contextlib.ExitStack() as stack,
        daemons.running(setting.folder, {"demo": setting.model}, config) as daemon,
        daemon.client() as client,
        process("engine", setting.model) as engine,
        served(os.environ.get("H2Q_LLAMA_SERVER"), setting.model) as peer,
    ):
        client.load("demo")
        clients = [stack.enter_context(daemon.client()) for _ in range(SLOTS)]
        supervisor = daemon.supervisor()
        for turn in rounds(1 + _ROUNDS, 90):
            before = sum(supervisor.cpu_times()[:2])
            took_s = _together(clients, take(fresh, SLOTS))
            share = 100 * (sum(supervisor.cpu_times()[:2]) - before) / took_s
            lone = engine.rate(take(fresh, SLOTS)).rate
            if peer is not None:
                peer.rate(take(fresh, SLOTS))
            if turn > 0:  # the first warms up
                rates.append(SLOTS * TOKENS / took_s)
                alone.append(lone)
                shares.append(share)
        worker = next(row.pid for row in client.ps().models)
        ours_mb = _peak_mb(worker or 0)
        theirs_mb = None if peer is None else _peak_mb(peer.pid)
    what = f"{SLOTS} streams of {TOKENS} tokens through the daemon"
    yield figures.paired(
        f"{what}, against the engine alone", "tokens/s", rates, alone, Bound(ENGINE_RATIO_MIN, at_least=True)
    )
    mean = sum(shares) / len(shares)  # processor time is told in steps of 10 ms
    yield Row(f"supervisor's share while {SLOTS} streams run", "%", mean, bound=Bound(SHARE_PERCENT_MAX, of="figure"))
    peak = f"worker's peak after {SLOTS} streams"
    if theirs_mb is None:
        yield Row(peak, "MB", ours_mb)
    else:
        yield Row(f"{peak}, against llama-server", "MB", ours_mb, theirs_mb, bound=Bound(PEAK_RATIO_MAX))


def _together(clients: Sequence[Client], prompts: Sequence[str]) -> float:
    """Seconds until all have their answer, each over a connection of its own."""

    def ask(client: Client, prompt: str) -> None:
        for _ in client.stream(prompt, "demo", max_tokens=TOKENS, ignore_eos=True, temperature=0):
            pass

    threads = [Thread(target=ask, args=pair) for pair in zip(clients, prompts, strict=True)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def _peak_mb(pid: int) -> float:
    return parse_sizes(Path("/proc", str(psutil.Process(pid).pid), "status").read_text())["VmHWM"] / 1e6
