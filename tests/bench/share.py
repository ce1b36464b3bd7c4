"""What the supervisor itself takes while it relays one stream: processor time, and memory afterwards."""

import statistics
import time
from collections.abc import Iterator

from tests.bench import daemons
from tests.bench.figures import Bound, Row
from tests.bench.idle import SUPERVISOR_MB_MAX
from tests.bench.setting import Setting, prompts

SHARE_PERCENT_MAX = 5.0
_TOKENS = 384  # processor time is told in steps of 10 ms
_STREAMS = 3


def bench(setting: Setting) -> Iterator[Row]:
    """Shares in % of one core."""
    shares, costs = [], []
    fresh = prompts()
    with daemons.running(setting.folder, {"demo": setting.model}) as daemon, daemon.client() as client:
        client.load("demo")
        supervisor = daemon.supervisor()
        for _ in range(_STREAMS):
            began, before = time.perf_counter(), sum(supervisor.cpu_times()[:2])
            for _ in client.stream(next(fresh), "demo", max_tokens=_TOKENS, ignore_eos=True, temperature=0):
                pass
            took_s = sum(supervisor.cpu_times()[:2]) - before
            shares.append(100 * took_s / (time.perf_counter() - began))
            costs.append(took_s / _TOKENS * 1e6)
        memory = daemons.rss(daemon.process.pid) / 1e6
    bound = Bound(SHARE_PERCENT_MAX, of="figure")
    yield Row("supervisor's share while one stream runs", "%", statistics.median(shares), bound=bound)
    yield Row("supervisor's time for a token", "us", statistics.median(costs))
    yield Row("supervisor after streams: RSS", "MB", memory, bound=Bound(SUPERVISOR_MB_MAX, of="figure"))
