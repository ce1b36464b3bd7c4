"""Several streams at once: the engine against the raw low-level loop, in turns.

The engine runs in a process of its own, driven as a worker's loop drives it. Prompts of 26 tokens that no cache has
seen, 64 tokens for each; then one stream, and a prompt of 2,000 tokens beside it. What users get through the daemon,
against llama.cpp's own server, is measured by `crowd`.
"""

import contextlib
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench import figures, opponents
from tests.bench.figures import Bound, Row
from tests.bench.server import GREEDY, SHARE_TOKENS, SLOTS, TOKENS, Run, Server, prompts, served, take
from tests.bench.setting import Setting, rounds

CLIENTS = (1, 2, 4, 8)
LONG_TOKENS = 2000
RAW_RATIO_MIN = 0.93
GAP_RATIO_MAX = 2.5
_ROUNDS = 6
_ROUNDS_GAPS = 3


def bench(setting: Setting) -> Iterator[Row]:
    """Rates in tokens/s, times in ms."""
    with process("engine", setting.model) as engine, process("raw", setting.model) as raw:
        fresh = prompts()
        for clients in CLIENTS:
            runs: dict[Process, list[float]] = {engine: [], raw: []}
            for side in runs:
                side.rate(take(fresh, clients))
            for turn in rounds(_ROUNDS, 60):
                for side in (engine, raw) if turn % 2 else (raw, engine):
                    runs[side].append(side.rate(take(fresh, clients)).rate)
            yield figures.paired(
                f"{clients} stream{'s' if clients > 1 else ''} of {TOKENS} tokens, against the raw loop",
                "tokens/s",
                runs[engine],
                runs[raw],
                Bound(RAW_RATIO_MIN, at_least=True),
            )
        with served(setting.model) as peer:
            yield from _gaps(engine, peer, fresh)


def _gaps(engine: "Process", peer: Server | None, fresh: Iterator[str]) -> Iterator[Row]:
    what = f"beside a prompt of {LONG_TOKENS}"
    told = [engine.ask(prompt=next(fresh), long=_long(turn)) for turn in rounds(_ROUNDS_GAPS, 60)]
    for name, percent, bound in (("p99", 99, Bound(GAP_RATIO_MAX)), ("median", 50, None)):
        beside, alone = (
            [figures.percentile(one[which], percent) for one in told] for which in ("beside_ms", "normal_ms")
        )
        yield figures.paired(f"gaps ({name}) of a stream {what}, against alone", "ms", beside, alone, bound)
    yield Row(f"first token of {LONG_TOKENS} beside a stream", "ms", min(one["long_ms"] for one in told))
    if peer is not None:
        gaps, long_ms = peer.gaps(next(fresh), _long(0))
        yield Row(f"llama-server: gaps (p99) of a stream {what}", "ms", figures.percentile(gaps, 99))
        yield Row(f"llama-server: first token of {LONG_TOKENS} beside a stream", "ms", long_ms)


def _long(turn: int) -> str:
    """A prompt of LONG_TOKENS that no cache has seen."""
    return f"{turn} " + "tree " * (LONG_TOKENS - 4)


class Process:
    """A `batch_process`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def rate(self, prompts: Sequence[str], sampling: Mapping[str, Any] = GREEDY) -> Run:
        """All at once."""
        return Run(**self.ask(prompts=list(prompts), tokens=TOKENS, sampler=dict(sampling)))

    def ask(self, **order: Any) -> dict[str, Any]:
        """One order, one answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        return told


@contextlib.contextmanager
def process(kind: str, model: Path, slots: int = SLOTS) -> Iterator[Process]:
    """One of `batch_process`'s kinds, loaded."""
    arguments = (kind, str(model), str(slots * SHARE_TOKENS), str(slots))
    with opponents.child("tests.bench.batch_process", *arguments) as process:
        assert process.stdout is not None
        json.loads(process.stdout.readline())
        yield Process(process)
