"""llama.cpp's own server as a peer, and what streams are asked: prompts of 26 tokens that no cache has seen.

`H2Q_LLAMA_SERVER` names it, as in `router`; without it there is no such peer. It is asked over HTTP, as it is meant
to be. README.md beside this file says how to build it.
"""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from h2qd.worker.threads import thread_count

SLOTS = 8
TOKENS = 64
SHARE_TOKENS = 2304
GREEDY: Mapping[str, Any] = {"temperature": 0}
_START_S_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Run:
    """Streams that began together."""

    wall_ms: float
    first_ms: list[float]

    @property
    def rate(self) -> float:
        """Tokens a second in all."""
        return len(self.first_ms) * TOKENS / self.wall_ms * 1000


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


def together(asks: Sequence[Callable[[], None]]) -> tuple[float, float]:
    """Each on a thread of its own, all at once: when they began (perf_counter), and ms until the last was done."""
    threads = [threading.Thread(target=ask) for ask in asks]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return began, (time.perf_counter() - began) * 1000


class Server:
    """A llama-server that answers."""

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.pid = pid

    def rate(self, prompts: Sequence[str], sampling: Mapping[str, Any] = GREEDY) -> Run:
        """All at once, a connection for each."""
        times: list[list[float]] = [[] for _ in prompts]
        began, wall_ms = together(
            [partial(self._stream, *one, TOKENS, sampling) for one in zip(prompts, times, strict=True)]
        )
        return Run(wall_ms, [(stamps[0] - began) * 1000 for stamps in times])

    def gaps(self, prompt: str, long: str) -> tuple[list[float], float]:
        """The gaps of a stream from when a long prompt came until its first token, and how long that took."""
        stamps: list[float] = []
        other: list[float] = []
        thread = threading.Thread(target=self._stream, args=(prompt, stamps, 600))
        thread.start()
        while len(stamps) < 100:
            time.sleep(0.001)
        began = time.perf_counter()
        self._stream(long, other, 1)
        ended = time.perf_counter()
        thread.join()
        gaps = [(after - before) * 1000 for before, after in pairwise(stamps) if after > began and before < ended]
        return gaps, (other[0] - began) * 1000

    def _stream(self, prompt: str, stamps: list[float], tokens: int, sampling: Mapping[str, Any] = GREEDY) -> None:
        body = {"prompt": prompt, "n_predict": tokens, "stream": True, "ignore_eos": True, "cache_prompt": False}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request(
            "POST", "/completion", json.dumps(body | dict(sampling)), {"Content-Type": "application/json"}
        )
        with contextlib.closing(connection), connection.getresponse() as response:
            if response.status != http.client.OK:
                raise SystemExit(f"bench: llama-server says {response.status}: {response.read(1000)!r}")
            while line := response.readline():
                if line.startswith(b"data: {"):
                    stamps.append(time.perf_counter())


@contextlib.contextmanager
def served(model: Path, slots: int = SLOTS, *options: str) -> Iterator[Server | None]:
    """The server, loaded, if there is one; `options` are for it."""
    server = os.environ.get("H2Q_LLAMA_SERVER")
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
        yield Server(port, process.pid)
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
