"""What a budget means for clients: less than asked for, a variant, a refusal with the way out, going when idle.

Real daemons with scripted models, whose facts promise the memory that they take.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from h2qctl import H2qError
from h2qd.wire import messages as m
from tests.harness import DaemonProcess, await_true, started
from tests.pressure import KV_TOKEN_BYTES, MIB, bounded, model, with_cache, write_config

CTX = 8192
WEIGHTS_BYTES = 16 * MIB
CACHE_BYTES = CTX * KV_TOKEN_BYTES
LARGE = with_cache(model(WEIGHTS_BYTES, tokens=3))
TINY = model(8 * MIB, tokens=3)


def config(limit_bytes: float, more: str = "", policy: str = "exclusive") -> str:
    return f"""
residency: {{policy: {policy}, restore: false}}
memory: {{model_limit: {int(limit_bytes)}, safety_buffer: 0, working: 64MiB}}
model: {{ctx: {CTX}, min_ctx: 1024{more}}}
"""


@contextmanager
def daemon_with(folder: Path, text: str, **keys: object) -> Iterator[DaemonProcess]:
    """A daemon with a large model, of which the configuration says `keys`, and a tiny one."""
    path = write_config(folder, {"large": LARGE, "tiny": TINY}, text, {"large": keys})
    with started(folder, path) as daemon:
        yield daemon


def row_of(daemon: DaemonProcess, name: str) -> m.ResidentRow:
    return next(row for row in daemon.client().ps().models if row.name == name)


def test_everything_is_given_where_it_fits(tmp_path: Path) -> None:
    with daemon_with(tmp_path, config(2 * CACHE_BYTES)) as daemon:
        told = daemon.client().load("large")
        assert (told.ctx, told.kv_type, told.degraded) == (CTX, "f16", [])
        assert row_of(daemon, "large").degraded == []


def test_half_the_memory_gives_a_cache_of_half_the_bits(tmp_path: Path) -> None:
    with daemon_with(tmp_path, config(WEIGHTS_BYTES * 2 + CACHE_BYTES * 0.75)) as daemon:
        client = daemon.client()
        plan = client.plan("large")
        assert not plan.fits
        assert plan.instead is not None
        told = client.load("large")
        assert (told.ctx, told.kv_type) == (plan.instead.ctx, plan.instead.kv_type) == (CTX, "q8_0")
        assert told.degraded == ["KV cache q8_0 instead of f16"]
        row = row_of(daemon, "large")
        assert (row.ctx, row.kv_type, row.degraded) == (told.ctx, told.kv_type, told.degraded)
        assert row.planned_bytes == plan.instead.total_bytes


def test_less_memory_gives_half_the_context(tmp_path: Path) -> None:
    with daemon_with(tmp_path, config(WEIGHTS_BYTES * 2.5 + CACHE_BYTES * 0.5)) as daemon:
        client = daemon.client()
        told = client.load("large")
        assert (told.ctx, told.kv_type) == (CTX // 2, "q8_0")
        assert told.degraded == [f"context {CTX // 2} instead of {CTX}", "KV cache q8_0 instead of f16"]
        assert row_of(daemon, "large").degraded == told.degraded
        assert not client.load("large").changed, "the same again is what is there"
        assert client.infer("hello").finish == "stop"


@pytest.mark.parametrize("how", ["exact", "degrade"])
def test_who_will_not_have_less_is_refused_with_the_way_out(tmp_path: Path, how: str) -> None:
    keys = {"degrade": "false"} if how == "degrade" else {}
    with daemon_with(tmp_path, config(WEIGHTS_BYTES * 2.5 + CACHE_BYTES * 0.5), **keys) as daemon:
        client = daemon.client()
        with pytest.raises(H2qError) as caught:
            client.load("large", exact=how == "exact")
        assert caught.value.code == "no_fit"
        assert not caught.value.retryable
        assert f"h2qctl load large --ctx {CTX // 2} --kv-type q8_0" in caught.value.hint
        assert client.load("large", ctx=CTX // 2, kv_type="q8_0", exact=True).degraded == []


def test_a_variant_answers_where_the_model_does_not_fit(tmp_path: Path) -> None:
    limit = config(WEIGHTS_BYTES * 1.5)
    with daemon_with(tmp_path, limit, variants="[tiny]") as daemon:
        client = daemon.client()
        told = client.load("large")
        assert (told.model, told.degraded) == ("tiny", ["tiny instead of large"])
        assert client.infer("hello", "large").model == "tiny"
        with pytest.raises(H2qError) as caught:
            client.load("large", exact=True)
        assert caught.value.code == "no_fit"
        assert client.status().resident == ["tiny"]


def test_an_idle_model_goes_by_itself_and_comes_back(tmp_path: Path) -> None:
    with daemon_with(tmp_path, config(2 * CACHE_BYTES, ", ttl: 300ms")) as daemon:
        client = daemon.client()
        client.load("tiny")
        loaded = time.monotonic()
        for notice in client.events(since=0):
            if (notice.model, notice.data.get("now")) == ("tiny", "cold"):
                break
        idle_s = time.monotonic() - loaded
        assert 0.3 <= idle_s < 2
        assert client.ps().models == []
        assert client.infer("hello", "tiny").finish == "stop"
        assert client.infer("hello").model == "tiny", "it is still the one that is meant"
        client.pin("tiny")
        assert row_of(daemon, "tiny").until_ms is None, "what is pinned stays"
        client.unpin("tiny")
        until_ms = row_of(daemon, "tiny").until_ms
        assert until_ms is not None
        assert until_ms <= 300


def test_strict_refuses_what_the_device_has_not_got(tmp_path: Path) -> None:
    """Somebody else took what the budget counts on: a strict daemon refuses the load until it is back."""
    limits = "memory: {model_limit: 300MiB, safety_buffer: 0, working: 64MiB, strict: true}\n"
    text = "residency: {policy: budget, restore: false}\nguard: {warn: 97%, critical: 98%, emergency: 99%}\n" + limits
    models = {"large": model(120 * MIB), "tiny": TINY}
    config_path = write_config(tmp_path, models, text)
    with bounded(512 * MIB) as group, started(tmp_path, config_path, within=group.folder) as daemon:
        with group.eater() as eater:
            client = daemon.client()
            assert client.load("large").changed
            client.unload("large")
            eater.fill_to(0.8)
            await_true(lambda: client.top().used_share > 75, "it is read")
            with pytest.raises(H2qError) as caught:
                client.load("large")
            assert caught.value.code == "memory_pressure"
            assert caught.value.retry_after_ms is not None
            assert client.load("tiny").changed, "what is there can be had"
        await_true(lambda: client.top().used_share < 50, "it is read")
        assert client.load("large").changed


def test_strict_does_not_start_on_a_promise_that_cannot_be_kept(tmp_path: Path) -> None:
    text = "memory: {model_limit: 300MiB, safety_buffer: 0, working: 64MiB, strict: %s}\n"
    with bounded(512 * MIB) as group, group.eater() as eater:
        eater.fill_to(0.7)
        config_path = write_config(tmp_path, {"tiny": TINY}, text % "true")
        with (
            pytest.raises(AssertionError, match=r"cannot keep to the budget \(memory.strict\)"),
            started(tmp_path, config_path, within=group.folder),
        ):
            pass
        write_config(tmp_path, {"tiny": TINY}, text % "false")
        with started(tmp_path, config_path, within=group.folder) as daemon:
            assert any("the budget promises" in what for what in daemon.client().status().degraded)
