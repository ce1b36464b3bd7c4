"""What the daemon costs while nothing happens, and what it takes to start it and to ask it from a terminal."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench import daemons, figures
from tests.bench.figures import Bound, Row
from tests.bench.setting import Setting

SUPERVISOR_MB_MAX = 40.0
ZYGOTE_MB_MAX = 45.0
READY_S_MAX = 0.5
PS_S_MAX = 0.1
_STARTS = 7
_ASKS = 20


def bench(setting: Setting) -> Iterator[Row]:
    """Memory in MB (10^6 bytes), times in s; floors are a bare interpreter's start in the same minute."""
    models = {"demo": setting.model}
    with daemons.running(setting.folder, models) as daemon:
        with daemon.client() as client:
            while "llama-cpp-python" not in client.version().libraries:
                time.sleep(0.01)
        yield Row(
            "supervisor, idle: RSS", "MB", daemons.rss(daemon.process.pid) / 1e6, bound=_at_most(SUPERVISOR_MB_MAX)
        )
        yield Row("zygote, idle: PSS", "MB", daemons.pss(daemon.zygote().pid) / 1e6, bound=_at_most(ZYGOTE_MB_MAX))
        tool = [str(Path(sys.executable).with_name("h2qctl")), "--socket", daemon.socket, "ps"]
        asks, floor = [], []
        for _ in range(_ASKS):
            asks.append(_seconds(tool))
            floor.append(bare())
        yield figures.paired("h2qctl ps, as a process", "s", asks, floor, _at_most(PS_S_MAX))
    starts, floor = [], []
    for _ in range(_STARTS):
        daemon = daemons.start(setting.folder, models)
        starts.append(daemon.ready_s)
        daemons.stop(daemon, setting.folder)
        floor.append(bare())
    yield figures.paired("daemon start to first answer", "s", starts, floor, _at_most(READY_S_MAX))


def _at_most(limit: float) -> Bound:
    return Bound(limit, of="figure")


def bare() -> float:
    """Seconds that an interpreter takes to start and end."""
    return _seconds([sys.executable, "-c", "pass"])


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began
