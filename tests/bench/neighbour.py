"""One stream on a quiet machine and beside one busy process per core: ours against llama.cpp's own server, in turns.

The engine in a process of its own follows what the device does; `steady` is the same with a fixed number of threads,
so what following costs when nobody else is there, and brings when somebody is. `H2Q_LLAMA_SERVER` names the server,
as in `batch`.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from tests.bench import figures
from tests.bench.batch import process
from tests.bench.daemons import ROOT
from tests.bench.figures import Bound, Row
from tests.bench.server import TOKENS, prompts, served, take
from tests.bench.setting import Setting, rounds

SERVER_BUSY_RATIO_MIN = 1.5
STEADY_QUIET_RATIO_MIN = 0.95
STEADY_BUSY_RATIO_MIN = 1.2
_ROUNDS = 5
_SECONDS_MAX = 60


def bench(setting: Setting) -> Iterator[Row]:
    """Rates in tokens/s."""
    with (
        process("engine", setting.model, 1) as engine,
        process("steady", setting.model, 1) as steady,
        served(setting.model, 1) as peer,
    ):
        sides: list[Any] = [side for side in (engine, steady, peer) if side is not None]
        fresh = prompts()
        quiet = _rates(sides, fresh)
        with _busy():
            beside = _rates(sides, fresh)
    what = f"a stream of {TOKENS} tokens"
    for rates, where, steady_min, server_min in (
        (quiet, "on a quiet machine", STEADY_QUIET_RATIO_MIN, None),
        (beside, "beside a busy process per core", STEADY_BUSY_RATIO_MIN, SERVER_BUSY_RATIO_MIN),
    ):
        bound = Bound(steady_min, at_least=True)
        yield figures.paired(f"{what} {where}, against fixed threads", "tokens/s", rates[0], rates[1], bound)
        if peer is not None:
            limit = Bound(server_min, at_least=True) if server_min else None
            yield figures.paired(f"{what} {where}, against llama-server", "tokens/s", rates[0], rates[2], limit)


def _rates(sides: list[Any], fresh: Iterator[str]) -> list[list[float]]:
    rates: list[list[float]] = [[] for _ in sides]
    for side in sides:
        side.rate(take(fresh, 1))
    for turn in rounds(_ROUNDS, _SECONDS_MAX):
        for at in range(len(sides)):
            which = (turn + at) % len(sides)
            rates[which].append(sides[which].rate(take(fresh, 1)).rate)
    return rates


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    """One busy process per CPU, at the usual priority; each dies with this one, however it goes."""
    with contextlib.ExitStack() as ends:
        for _ in os.sched_getaffinity(0):
            command = [sys.executable, "-m", "tests.bench.spin_process", str(os.getpid())]
            ends.enter_context(_killed(subprocess.Popen(command, cwd=ROOT)))
        yield


@contextlib.contextmanager
def _killed(child: "subprocess.Popen[bytes]") -> Iterator[None]:
    try:
        yield
    finally:
        child.kill()
        child.wait()
