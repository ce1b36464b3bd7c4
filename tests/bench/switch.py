"""Switching between two models: what the daemon adds to a scripted load, and real models to the first token.

The real pair are two copies of one file, not links: pages of one must not be taken for the other's. Their floor is
the raw loop doing the same: end one process, fork the next, load, first token.
"""

import json
import shutil
import time
from collections.abc import Iterator

from h2qctl import Client
from tests.bench import daemons, figures, opponents
from tests.bench.figures import Bound, Row
from tests.bench.setting import Setting, prompts, rounds

OVERHEAD_MS_MAX = 50.0
FIRST_TOKEN_RATIO_MAX = 1.25
_LOAD_MS = 200
_SCRIPTED = 20
_REAL = 6


def bench(setting: Setting) -> Iterator[Row]:
    """Times in ms."""
    yield from _scripted(setting)
    yield from _real(setting)


def _scripted(setting: Setting) -> Iterator[Row]:
    models = {name: setting.folder / f"{name}.json" for name in ("a", "b")}
    for path in models.values():
        path.write_text(json.dumps({"h2qd_fake": 1, "load_ms": _LOAD_MS}))
    times, loads = [], []
    with daemons.running(setting.folder / "scripted", models) as daemon, daemon.client() as client:
        client.load("a")
        for turn in rounds(_SCRIPTED, 30):
            began = time.perf_counter()
            loads.append(client.switch("ab"[1 - turn % 2]).load_ms)
            times.append((time.perf_counter() - began) * 1000)
    beyond = sorted(whole - load for whole, load in zip(times, loads, strict=True))
    bound = Bound(OVERHEAD_MS_MAX, of="figure")
    yield Row("switch of scripted models, beyond the load", "ms", beyond[len(beyond) // 2], bound=bound)
    yield figures.paired("switch of scripted models, in all", "ms", times, loads)


def _real(setting: Setting) -> Iterator[Row]:
    models = {name: setting.folder / f"{name}.gguf" for name in ("a", "b")}
    for path in models.values():
        shutil.copyfile(setting.model, path)
    fresh = prompts()
    times, floor = [], []
    with daemons.running(setting.folder / "real", models) as daemon, daemon.client() as client:
        ctx = client.load("a").ctx
        with opponents.raw_loop(models["a"], ctx) as raw:
            raw.load()
            for turn in rounds(_REAL, 90):
                prompt = next(fresh)
                times.append(first_token_ms(client, "ab"[1 - turn % 2], prompt))
                began = time.perf_counter()
                raw.unload()
                raw.load()
                raw.stream(1, prompt)
                floor.append((time.perf_counter() - began) * 1000)
    bound = Bound(FIRST_TOKEN_RATIO_MAX)
    yield figures.paired("switch of real models, to the first token", "ms", times, floor, bound)


def first_token_ms(client: Client, model: str, prompt: str) -> float:
    """From asking a model that is not resident to the first piece of its answer."""
    began = time.perf_counter()
    with client.stream(prompt, model, max_tokens=1, temperature=0) as stream:
        next(stream)
        return (time.perf_counter() - began) * 1000
