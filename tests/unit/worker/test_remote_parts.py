"""Small parts of remote models: keys, addresses, paces, budgets, bounds."""

import asyncio
import time
from pathlib import Path

import pytest

from h2qd.wire.workers import Generate, RemoteTarget, Sampler
from h2qd.worker.engine import EngineError, Said
from h2qd.worker.remote.address import is_refused
from h2qd.worker.remote.errors import RemoteError, refused
from h2qd.worker.remote.pace import Pace, span_s
from h2qd.worker.remote.reply import Reply, chosen
from h2qd.worker.remote.retry import Budget, delay_s
from h2qd.worker.remote.secret import Secret, read_secret

KEY = "sk-proj-0123456789abcdef"


def test_a_key_shows_in_its_header_only() -> None:
    secret = Secret(KEY)
    assert secret.header() == [(b"Authorization", f"Bearer {KEY}".encode())]
    assert KEY not in f"{secret!r} {secret}"
    assert secret.scrubbed(f"bad key {KEY}, or {KEY[:9]}***{KEY[-9:]}.") == "bad key …, or …"
    assert Secret().header() == []
    assert Secret().scrubbed("text") == "text"


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "ünicode", "nul\0"])
def test_a_key_that_fits_no_header_is_refused_unquoted(key: str) -> None:
    with pytest.raises(EngineError) as caught:
        Secret(key)
    assert key not in caught.value.message


def test_where_keys_are_read_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "cloud").write_text(f"{KEY}\n")
    (tmp_path / "empty").write_text("")
    (tmp_path / "large").write_bytes(b"a" * 9000)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert read_secret(RemoteTarget("openai", "u", key_credential="cloud")).header() == Secret(KEY).header()
    for name in ("empty", "large", "binary", "absent", "../cloud", "..", "/etc/passwd", "a/b"):
        with pytest.raises(EngineError) as caught:
            read_secret(RemoteTarget("openai", "u", key_credential=name))
        assert caught.value.code == "load_failed"
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    with pytest.raises(EngineError):
        read_secret(RemoteTarget("openai", "u", key_credential="cloud"))
    with pytest.raises(EngineError):
        read_secret(RemoteTarget("openai", "u", key_env="NO_SUCH_KEY_HERE"))


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "fd20:ce::254",
        "100.100.100.200",
        "192.0.0.192",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "224.0.0.1",
        "ff02::1",
    ],
)
def test_addresses_that_are_refused(address: str) -> None:
    assert is_refused(address)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "::1", "192.168.1.2", "10.0.0.1", "fd12::1", "8.8.8.8", "100.64.0.1"]
)
def test_addresses_that_are_not(address: str) -> None:
    assert not is_refused(address)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("6m0s", 360), ("1h2m3s", 3723), ("20ms", 0.02), ("1.5s", 1.5), ("7", 7), ("", 0), ("soon", 0)],
)
def test_spans(text: str, seconds: float) -> None:
    assert span_s(text) == pytest.approx(seconds)


def test_a_rate_keeps_requests_apart() -> None:
    async def three() -> None:
        pace = Pace(rate_per_min=1200)
        for _ in range(3):
            await pace.turn()

    start_s = time.monotonic()
    asyncio.run(three())
    assert time.monotonic() - start_s >= 0.1


def test_a_rate_that_is_used_up_for_long_is_said_so() -> None:
    async def too_many() -> None:
        pace = Pace(rate_per_min=1)
        await pace.turn()
        await pace.turn()

    with pytest.raises(RemoteError, match="it may be asked again in 60 s") as caught:
        asyncio.run(too_many())
    assert caught.value.code == "queue_full"


def test_retries_are_a_tenth_of_the_requests_after_a_first_few() -> None:
    budget = Budget()
    spent = 0
    for _ in range(1000):
        budget.earn()
        spent += budget.spend()
    assert 100 <= spent <= 104


def test_delays_grow_and_differ_and_keep_to_what_a_server_asks() -> None:
    assert delay_s(3, None) > delay_s(1, None)
    assert len({delay_s(1, None) for _ in range(10)}) > 1
    assert 5 <= delay_s(1, 5.0) <= 5.25


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, b'{"error":{"message":"m","code":"context_length_exceeded"}}', "context_overflow"),
        (400, b'{"error":{"message":"m","type":"exceed_context_size_error"}}', "context_overflow"),
        (400, b'{"error":"the input length exceeds the context length"}', "context_overflow"),
        (400, b'{"error":"the prompt is longer than the context length currently available"}', "context_overflow"),
        (500, b'{"error":"the input length exceeds the context length"}', "generation_failed"),
        (400, b'{"detail":[{"loc":["body"]}]}', "remote_failed"),
        (401, b"", "remote_failed"),
        (429, b"", "queue_full"),
        (503, b"", "queue_full"),
        (502, b"<html>", "generation_failed"),
    ],
)
def test_refusals(status: int, body: bytes, code: str) -> None:
    assert refused(status, body).code == code


def test_a_refusal_is_bounded_and_harmless_to_a_terminal() -> None:
    error = refused(400, b'{"error":"\\u001b[2Jgone\\u202e ' + b"a" * 10_000 + b'"}')
    assert error.message.isprintable()
    assert len(error.message) < 600


def test_more_text_than_was_asked_for_is_refused() -> None:
    said: list[Said] = []
    reply = Reply(Generate(1, 4, Sampler(), prompt=""), said.append)
    with pytest.raises(RemoteError):
        reply.text("a" * 10_000, [])
    assert said == []


def test_figures_of_a_server_stay_within_the_wire() -> None:
    said: list[Said] = []
    reply = Reply(Generate(1, 4, Sampler(), prompt=""), said.append)
    ended = reply.end("stop", prompt_tokens=-5, completion_tokens=2**70, prefill_ms=-1.0, decode_ms=1e300)
    assert (ended.prompt_tokens, ended.completion_tokens, ended.prefill_ms, ended.decode_ms) == (
        0,
        2**53 - 1,
        0,
        1e12,
    )
    assert chosen("a" * 9000, 0.5, []).logprob == 0
    assert len(chosen("a" * 9000, 0.5, []).text) == 4096
    assert chosen("a", float("-inf"), []).logprob == -1e12
