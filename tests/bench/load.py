"""Loading and unloading the bundled model against a load in a process with the imports done, in turns.

That an unload gives the memory back is read twice: in the daemon's own reply, and by the bench from /proc.
"""

import time
from collections.abc import Iterator

from h2qctl import Client
from tests.bench import daemons, figures, opponents
from tests.bench.figures import Bound, Row
from tests.bench.setting import Setting, rounds

LOAD_RATIO_MAX = 1.2
BACK_PERCENT_MIN = 99.0
UNLOAD_S_MAX = 0.3
_ROUNDS = 5


def bench(setting: Setting) -> Iterator[Row]:
    """Loads in ms, unloads in s, memory in % of what was held."""
    inner: list[float] = []
    outer: list[float] = []
    raw_inner: list[float] = []
    raw_outer: list[float] = []
    gone: list[tuple[float, float, float]] = []
    with daemons.running(setting.folder, {"demo": setting.model}) as daemon, daemon.client() as client:
        ctx = client.load("demo").ctx
        client.unload("demo")
        with opponents.raw_loop(setting.model, ctx) as raw:
            for _ in rounds(_ROUNDS, 60):
                before = daemon.tree_pss()
                began = time.perf_counter()
                loaded = client.load("demo")
                outer.append((time.perf_counter() - began) * 1000)
                inner.append(loaded.load_ms)
                gone.append(_unload(daemon, client, before))
                told = raw.load()
                raw.unload()
                raw_inner.append(told["load_ms"])
                raw_outer.append(told["wall_ms"])
    yield figures.paired("load, in the worker", "ms", inner, raw_inner, Bound(LOAD_RATIO_MAX))
    yield figures.paired("load, as a client sees it", "ms", outer, raw_outer, Bound(LOAD_RATIO_MAX))
    seconds, replied, read = (list(column) for column in zip(*gone, strict=True))
    back = Bound(BACK_PERCENT_MIN, of="figure", at_least=True)
    yield Row("unload, as a client sees it (slowest)", "s", max(seconds), bound=Bound(UNLOAD_S_MAX, of="figure"))
    yield Row("memory back by the reply (least)", "%", min(replied), bound=back)
    yield Row("memory back by /proc (least)", "%", min(read), bound=back)


def _unload(daemon: daemons.Daemon, client: Client, before: int) -> tuple[float, float, float]:
    """Seconds, and the share of the memory that came back: as the reply says, and as /proc does."""
    client.infer("Once upon a time", "demo", max_tokens=8)  # touches what a load alone would not
    held = daemon.tree_pss()
    began = time.perf_counter()
    released = client.unload("demo").released
    took_s = time.perf_counter() - began
    after = daemon.tree_pss()
    assert released is not None
    return took_s, 100 * released.freed_bytes / released.held_bytes, 100 * (held - after) / (held - before)
