"""Small parts of remote models: keys, addresses, paces, budgets, bounds."""

import asyncio
import time
from pathlib import Path

import msgspec
import pytest

from h2qd.wire.workers import Generate, RemoteTarget, Sampler
from h2qd.worker.engine import EngineError, Said
from h2qd.worker.remote.address import is_refused
from h2qd.worker.remote.errors import RemoteError, failed_midway, refused
from h2qd.worker.remote.pace import Pace, span_s
from h2qd.worker.remote.reply import Reply, chosen
from h2qd.worker.remote.retry import TRIES_MAX, WAIT_S_MAX, Retries
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


class _Failing:
    """A server that does nothing but fail, and the clock of who asks it."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.tries = 0
        self.slept_s: list[float] = []
        self.retries = Retries(self._sleep)

    async def _sleep(self, wait_s: float) -> None:
        self.slept_s.append(wait_s)

    async def _send(self) -> None:
        self.tries += 1
        raise self.error

    def ask(self) -> None:
        with pytest.raises(type(self.error)) as caught:
            asyncio.run(self.retries.run(self._send))
        assert caught.value is self.error


def test_retries_are_a_tenth_of_the_requests_after_a_first_few() -> None:
    server = _Failing(RemoteError("queue_full", "busy", again=True))
    for _ in range(1000):
        server.ask()
    assert 100 <= server.tries - 1000 <= 104


def test_one_request_is_sent_a_few_times_at_most_and_later_each_time() -> None:
    first: list[float] = []
    for _ in range(50):
        server = _Failing(RemoteError("queue_full", "busy", again=True))
        server.ask()
        assert server.tries == TRIES_MAX
        assert all(0 <= wait_s <= 0.5 * 2**n for n, wait_s in enumerate(server.slept_s))
        first.append(server.slept_s[0])
    assert len(set(first)) > 1, "those who failed together do not come back together"


def test_a_retry_keeps_to_what_the_server_asks_if_that_is_worth_waiting_for() -> None:
    server = _Failing(RemoteError("queue_full", "busy", again=True, after_s=5.0))
    server.ask()
    assert server.tries == TRIES_MAX
    assert all(5 <= wait_s <= 5.25 for wait_s in server.slept_s)
    server = _Failing(RemoteError("queue_full", "busy", again=True, after_s=WAIT_S_MAX))
    server.ask()
    assert server.tries == 1


@pytest.mark.parametrize("error", [RemoteError("remote_failed", "no"), asyncio.CancelledError(), ValueError("no")])
def test_what_does_not_say_that_it_may_pass_is_not_tried_again(error: Exception) -> None:
    server = _Failing(error)
    server.ask()
    assert server.tries == 1


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, b'{"error":{"message":"m","code":"context_length_exceeded"}}', "context_overflow"),
        (400, b'{"error":{"message":"m","type":"exceed_context_size_error"}}', "context_overflow"),
        (400, b'{"error":"the input length exceeds the context length"}', "context_overflow"),
        (400, b'{"error":"the prompt is longer than the context length currently available"}', "context_overflow"),
        (500, b'{"error":"the input length exceeds the context length"}', "generation_failed"),
        (400, b'{"detail":[{"loc":["body"]}]}', "remote_failed"),
        (
            400,
            b'{"error":"{\\"error\\":{\\"message\\":\\"m\\",\\"type\\":\\"exceed_context_size_error\\"}}"}',
            "context_overflow",
        ),
        (400, b'{"error":"{\\"error\\":{\\"type\\":\\"exceed_context_size_error\\"}}"}', "remote_failed"),
        (400, b'{"error":"' + b"[" * 60_000 + b'"}', "remote_failed"),
        (401, b"", "remote_failed"),
        (429, b"", "queue_full"),
        (501, b'{"error":"This server does not support embeddings."}', "unsupported"),
        (500, b'{"error":"image input is not supported - hint: you may need the mmproj"}', "unsupported"),
        (500, b'{"error":{"message":"image input is not supported","type":"server_error"}}', "unsupported"),
        (503, b"", "queue_full"),
        (502, b"<html>", "generation_failed"),
    ],
)
def test_refusals(status: int, body: bytes, code: str) -> None:
    assert refused(status, body).code == code


def test_an_error_object_within_an_error_speaks_for_itself() -> None:
    runner = '{"error":{"code":400,"message":"cannot resolve $ref","type":"invalid_request_error"}}'
    for error in (runner, {"message": runner, "type": "invalid_request_error"}):
        told = refused(400, msgspec.json.encode({"error": error})).message
        assert told == "the server answered 400: cannot resolve $ref"
    assert failed_midway(runner).message == "the server gave its answer up: cannot resolve $ref"
    assert failed_midway("{it broke").message == "the server gave its answer up: {it broke"


@pytest.mark.parametrize(("status", "away"), [(400, False), (408, True), (500, True), (501, False), (503, True)])
def test_what_may_be_so_for_all_that_a_server_is_asked(status: int, away: bool) -> None:
    assert refused(status, b"").away is away


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
