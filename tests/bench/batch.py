"""Several streams at once: the engine against the raw low-level loop and against llama.cpp's own server, in turns.

The engine runs in a process of its own, driven as a worker's loop drives it; the server is asked over HTTP, as it is
meant to be. `H2Q_LLAMA_SERVER` names it, as in `router`; without it those rows are left out. Prompts of 26 tokens
that no cache has seen, 64 tokens for each; then one stream, and a prompt of 2,000 tokens beside it.
"""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from h2qd.worker.llama.threads import thread_count
from tests.bench import figures, opponents
from tests.bench.figures import Bound, Row
from tests.bench.setting import Setting, rounds

SLOTS = 8
CLIENTS = (1, 2, 4, 8)
TOKENS = 64
LONG_TOKENS = 2000
RAW_RATIO_MIN = 0.93
SERVER_RATIO_MIN = {1: 1.10, 2: None, 4: None, 8: 1.15}
FIRST_RATIO_MAX = 0.9
GAP_RATIO_MAX = 2.5
SHARE_TOKENS = 2304
_ROUNDS = 6
_ROUNDS_GAPS = 3
_START_S_MAX = 60.0
_GREEDY = {"temperature": 0}


@dataclass(frozen=True, slots=True)
class Run:
    """Streams that began together."""

    wall_ms: float
    first_ms: list[float]

    @property
    def rate(self) -> float:
        """Tokens a second in all."""
        return len(self.first_ms) * TOKENS / self.wall_ms * 1000


def bench(setting: Setting) -> Iterator[Row]:
    """Rates in tokens/s, times in ms."""
    server = os.environ.get("H2Q_LLAMA_SERVER")
    with (
        process("engine", setting.model) as engine,
        process("raw", setting.model) as raw,
        served(server, setting.model) as peer,
    ):
        fresh = prompts()
        sides: list[Any] = [side for side in (engine, raw, peer) if side is not None]
        for clients in CLIENTS:
            runs: dict[Any, list[Run]] = {side: [] for side in sides}
            for side in sides:
                side.rate(take(fresh, clients))
            for turn in rounds(_ROUNDS, 60):
                for at in range(len(sides)):
                    side = sides[(turn + at) % len(sides)]
                    runs[side].append(side.rate(take(fresh, clients)))
            yield from _rows(clients, runs[engine], runs[raw], runs.get(peer))
        yield from _gaps(engine, peer, fresh)


def _rows(clients: int, ours: list[Run], raw: list[Run], peer: list[Run] | None) -> Iterator[Row]:
    what = f"{clients} stream{'s' if clients > 1 else ''} of {TOKENS} tokens"
    rates = [run.rate for run in ours]
    yield figures.paired(
        f"{what}, against the raw loop",
        "tokens/s",
        rates,
        [run.rate for run in raw],
        Bound(RAW_RATIO_MIN, at_least=True),
    )
    if peer is None:
        return
    limit = SERVER_RATIO_MIN[clients]
    bound = Bound(limit, at_least=True) if limit else None
    yield figures.paired(f"{what}, against llama-server", "tokens/s", rates, [run.rate for run in peer], bound)
    yield figures.paired(
        f"{what}: first token, against llama-server",
        "ms",
        [max(run.first_ms) for run in ours],
        [max(run.first_ms) for run in peer],
        Bound(FIRST_RATIO_MAX) if clients == 1 else None,
    )


def _gaps(engine: "_Process", peer: "_Server | None", fresh: Iterator[str]) -> Iterator[Row]:
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


def prompts() -> Iterator[str]:
    """26 tokens each, the beginning of text counted; a digit is a token."""
    for number in range(1000, 10_000):
        yield (
            f"{str(number)[::-1]} small computers in the room began to answer every question that people had,"
            " and the first of them was this"
        )


def take(fresh: Iterator[str], count: int) -> list[str]:
    """The next so many."""
    return [next(fresh) for _ in range(count)]


class _Process:
    """A `batch_process`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def rate(self, prompts: Sequence[str]) -> Run:
        """All at once."""
        return Run(**self.ask(prompts=list(prompts), tokens=TOKENS, sampler=_GREEDY))

    def ask(self, **order: Any) -> dict[str, Any]:
        """One order, one answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        return told


@contextlib.contextmanager
def process(kind: str, model: Path, slots: int = SLOTS) -> Iterator[_Process]:
    """One of `batch_process`'s kinds, loaded."""
    arguments = (kind, str(model), str(slots * SHARE_TOKENS), str(slots))
    with opponents.child("tests.bench.batch_process", *arguments) as process:
        assert process.stdout is not None
        json.loads(process.stdout.readline())
        yield _Process(process)


class _Server:
    """A llama-server that answers."""

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.pid = pid

    def rate(self, prompts: Sequence[str]) -> Run:
        """All at once, a connection for each."""
        times: list[list[float]] = [[] for _ in prompts]
        threads = [
            threading.Thread(target=self._stream, args=(prompt, TOKENS, stamps))
            for prompt, stamps in zip(prompts, times, strict=True)
        ]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wall_ms = (time.perf_counter() - began) * 1000
        return Run(wall_ms, [(stamps[0] - began) * 1000 for stamps in times])

    def gaps(self, prompt: str, long: str) -> tuple[list[float], float]:
        """The gaps of a stream from when a long prompt came until its first token, and how long that took."""
        stamps: list[float] = []
        other: list[float] = []
        thread = threading.Thread(target=self._stream, args=(prompt, 600, stamps))
        thread.start()
        while len(stamps) < 100:
            time.sleep(0.001)
        began = time.perf_counter()
        self._stream(long, 1, other)
        ended = time.perf_counter()
        thread.join()
        gaps = [(after - before) * 1000 for before, after in pairwise(stamps) if after > began and before < ended]
        return gaps, (other[0] - began) * 1000

    def _stream(self, prompt: str, tokens: int, stamps: list[float]) -> None:
        body = {"prompt": prompt, "n_predict": tokens, "stream": True, "ignore_eos": True, "cache_prompt": False}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("POST", "/completion", json.dumps(body | _GREEDY), {"Content-Type": "application/json"})
        with contextlib.closing(connection), connection.getresponse() as response:
            if response.status != http.client.OK:
                raise SystemExit(f"bench: llama-server says {response.status}: {response.read(1000)!r}")
            while line := response.readline():
                if line.startswith(b"data: {"):
                    stamps.append(time.perf_counter())


@contextlib.contextmanager
def served(server: str | None, model: Path, slots: int = SLOTS, *options: str) -> Iterator[_Server | None]:
    """The server, loaded, if there is one; `options` are for it."""
    if server is None:
        yield None
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = str(thread_count(0))
    context = ["-c", str(slots * SHARE_TOKENS), "-np", str(slots), "-t", threads, "-tb", threads]
    process = subprocess.Popen(
        [server, "-m", str(model), "--host", "127.0.0.1", "--port", str(port), *context, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    began = time.perf_counter()
    try:
        while not _healthy(port):
            if process.poll() is not None or time.perf_counter() - began > _START_S_MAX:
                raise SystemExit("bench: llama-server does not start")
            time.sleep(0.05)
        yield _Server(port, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()  # it may take longer to notice beside busy processes
            process.wait()


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    return False
