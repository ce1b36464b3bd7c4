"""Switching between two real models, to the first token, against llama.cpp's own router doing the same in turns.

The peer is a `llama-server` of the very same llama.cpp: its sources come with llama-cpp-python's source package, see
README.md beside this file. `H2Q_LLAMA_SERVER` names it; without it the bench says so and measures nothing. Both sides
find the files in the page cache, and keep one model at a time. PARKED: the same with `residency.park`.
"""

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench import daemons, figures
from tests.bench.figures import Bound, Row
from tests.bench.setting import Setting, prompts, rounds
from tests.bench.switch import first_token_ms

COLD_RATIO_MAX = 0.55
PARKED_RATIO_MAX = 0.15
_SWITCHES = 10
_START_S_MAX = 30.0


def bench(setting: Setting) -> Iterator[Row]:
    """Times in ms."""
    server = os.environ.get("H2Q_LLAMA_SERVER")
    if server is None:
        yield Row("switch against llama.cpp's router: set H2Q_LLAMA_SERVER to measure it", "ms", 0.0)
        return
    folder = setting.folder / "models"
    folder.mkdir()
    models = {name: folder / f"{name}.gguf" for name in ("a", "b")}
    for path in models.values():
        shutil.copyfile(setting.model, path)  # no links: pages of one must not be taken for the other's
    with _router(Path(server), folder) as peer:
        yield from _against(setting, peer, models, "cold", "0s", COLD_RATIO_MAX)
        yield from _against(setting, peer, models, "parked", "1h", PARKED_RATIO_MAX)


def _against(
    setting: Setting, peer: "_Router", models: dict[str, Path], what: str, park: str, ratio_max: float
) -> Iterator[Row]:
    fresh = prompts()
    times, floor = [], []
    config = f"residency: {{park: {park}}}\nmodel: {{ctx: {_CTX}}}"
    with daemons.running(setting.folder / what, models, config) as daemon, daemon.client() as client:
        for name in ("a", "b", "a"):  # each was loaded once, and, where models are parked, b is
            first_token_ms(client, name, next(fresh))
            peer.first_token_ms(name, next(fresh))
        for turn in rounds(_SWITCHES, 90):
            model, prompt = "ab"[1 - turn % 2], next(fresh)
            times.append(first_token_ms(client, model, prompt))
            floor.append(peer.first_token_ms(model, prompt))
    yield figures.paired(f"switch to a {what} model, against the router", "ms", times, floor, Bound(ratio_max))


_CTX = 4096


@dataclass(frozen=True, slots=True)
class _Router:
    """A router that answers."""

    port: int

    def first_token_ms(self, model: str, prompt: str) -> float:
        """From asking to the first piece of the answer's stream."""
        body = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "stream": True}
        began = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        with contextlib.closing(connection), connection.getresponse() as response:
            if response.status != http.client.OK:
                raise SystemExit(f"bench: the router says {response.status}: {response.read(1000)!r}")
            line = response.readline()
            passed_ms = (time.perf_counter() - began) * 1000
            if not line.startswith(b"data: {"):
                raise SystemExit(f"bench: the router streams {line!r}")
            response.read()
        return passed_ms


@contextlib.contextmanager
def _router(server: Path, folder: Path) -> Iterator[_Router]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--models-dir", str(folder), "--models-max", "1", "--port", str(port), "-c", str(_CTX), "-np", "1"]
    process = subprocess.Popen([str(server), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    began = time.perf_counter()
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.perf_counter() - began > _START_S_MAX:
                raise SystemExit("bench: the router does not start")
            time.sleep(0.01)
        yield _Router(port)
    finally:
        process.terminate()
        process.wait(30)
