"""Messages that break the rules, against a real daemon: each is answered by its code, and costs nobody else."""

import os
from collections.abc import Iterator
from pathlib import Path

import msgpack
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from h2qd.wire import messages as m
from h2qd.wire.catalogue import CATALOGUE
from h2qd.wire.frames import Kind
from h2qd.wire.limits import CONTROL_BYTES_MAX, FRAME_BYTES_MAX
from tests.harness import DaemonProcess, Peer, await_true, running

EXAMPLES = int(os.environ.get("H2Q_FUZZ_EXAMPLES", "150"))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    quiet = {"H2Q_LOG_LEVEL": "info"}
    models = {"a": {"tokens": 2000, "token_ms": 2}}
    with running(tmp_path_factory.mktemp("daemon"), models, environment=quiet) as process:
        process.client().load("a")
        yield process
        assert process.client().status().phase == "serving"


@pytest.fixture
def peer(daemon: DaemonProcess) -> Iterator[Peer]:
    with Peer(daemon.socket) as peer:
        yield peer


def envelope(**fields: object) -> bytes:
    return bytes(msgpack.packb({"v": 1, "id": 7, "op": "daemon.status", **fields}))


def error(peer: Peer) -> tuple[int, str]:
    response, body = peer.receive()
    assert response.kind is Kind.ERROR
    return response.id, msgspec.msgpack.decode(body, type=m.ErrorReply).code


@pytest.mark.parametrize(
    ("frames", "heard"),
    [
        ([b""], (0, "malformed")),
        ([b"\x90"], (0, "malformed")),
        ([b"\xc1", b"\x80"], (0, "malformed")),
        ([envelope(), b"\x80", b"\x80"], (0, "malformed")),
        ([envelope()] * 5, (0, "malformed")),
        ([envelope(v=2), b"\x80"], (7, "unsupported_version")),
        ([envelope(v=2, novelty=True), b"\x80"], (7, "unsupported_version")),
        ([envelope(novelty=True), b"\x80"], (7, "invalid_request")),
        ([envelope(id=-1), b"\x80"], (0, "malformed")),
        ([envelope(id=2**53), b"\x80"], (0, "malformed")),
        ([envelope(id=7.5), b"\x80"], (0, "malformed")),
        ([envelope(deadline_ms=0), b"\x80"], (7, "invalid_request")),
        ([envelope(op="daemon.explode"), b"\x80"], (7, "unknown_command")),
        ([envelope(op="__class__"), b"\x80"], (7, "unknown_command")),
        ([envelope(op="x" * 65), b"\x80"], (7, "invalid_request")),
        ([envelope(), b"\x81\xa1x\x01"], (7, "invalid_request")),
        ([envelope(), b"\x80\x80"], (7, "invalid_request")),
        ([envelope(), b"\x80" * (CONTROL_BYTES_MAX + 1)], (7, "too_large")),
        ([b"\x80" * 1025, b"\x80"], (0, "too_large")),
        ([envelope(op="model.load"), bytes(msgpack.packb({"model": "a\0b"}))], (7, "no_such_model")),
        ([envelope(op="model.load"), bytes(msgpack.packb({"model": "a", "ctx": -1}))], (7, "invalid_request")),
        (
            [envelope(op="model.load"), bytes(msgpack.packb({"model": "\ud800"}, unicode_errors="surrogatepass"))],
            (7, "invalid_request"),
        ),
        ([envelope(op="model.import"), bytes(msgpack.packb({"path": "../x"}))], (7, "invalid_request")),
        ([envelope(op="infer.text"), bytes(msgpack.packb({"prompt": "x", "n_discard": -1}))], (7, "invalid_request")),
    ],
)
def test_each_breach_has_its_answer(peer: Peer, frames: list[bytes], heard: tuple[int, str]) -> None:
    peer.send(*frames)
    assert error(peer) == heard
    assert peer.end_of(peer.ask("daemon.status", message_id=9))[0] is Kind.REPLY


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x90" * CONTROL_BYTES_MAX,
        b"\x91" * CONTROL_BYTES_MAX,
        b"\x81\xa1x" * (CONTROL_BYTES_MAX // 3),
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xc7\x08\x05" + bytes(8),
    ],
)
@pytest.mark.parametrize("op", ["daemon.status", "model.load", "events.watch", "request.cancel"])
def test_bombs_are_refused_as_bodies_and_as_envelopes(peer: Peer, bomb: bytes, op: str) -> None:
    peer.send(envelope(op=op), bomb)
    assert error(peer) == (7, "invalid_request")
    peer.send(bomb, b"\x80")
    assert error(peer)[1] in ("malformed", "too_large")


@pytest.mark.parametrize("bomb", [b"\x90", b"\x91", b"\x80", b"\xa0"])
def test_bombs_as_large_as_a_prompt_are_refused_soon(daemon: DaemonProcess, peer: Peer, bomb: bytes) -> None:
    began = daemon.rss_bytes()
    peer.send(envelope(op="infer.text"), bomb * FRAME_BYTES_MAX)
    assert error(peer) == (7, "invalid_request")
    messages = b"\x82\xa6prompt\xa1x\xa4stop" + b"\xdd\x00\x3f\x00\x00" + bomb * (FRAME_BYTES_MAX - 20)
    peer.send(envelope(op="infer.text"), messages)
    assert error(peer) == (7, "invalid_request")
    await_true(lambda: daemon.rss_bytes() < began + 2 * 2**20, "the memory is back")


def test_a_frame_over_the_limit_cuts_its_connection_only(daemon: DaemonProcess, peer: Peer) -> None:
    other = daemon.client()
    number = other.status().pid
    with Peer(daemon.socket) as large:
        large.ask("events.watch", m.Events(follow=True), message_id=3)
        large.send(envelope(), b"\x80" * (FRAME_BYTES_MAX + 1))
        assert not large.hears(0.3)
    assert peer.end_of(peer.ask("daemon.status"))[0] is Kind.REPLY
    assert other.status().pid == number


def test_an_id_in_flight_cannot_be_used_again(peer: Peer) -> None:
    peer.ask("events.watch", m.Events(follow=True), message_id=5)
    peer.ask("daemon.status", message_id=5)
    assert error(peer) == (5, "duplicate_id")
    peer.ask("request.cancel", m.Cancel(id=5), message_id=6)
    ends = [peer.receive()[0] for _ in range(2)]
    assert {(end.id, end.kind) for end in ends} == {(5, Kind.ERROR), (6, Kind.REPLY)}
    assert peer.end_of(peer.ask("daemon.status", message_id=5))[0] is Kind.REPLY


def test_credit_for_what_is_not_there_is_ignored(peer: Peer) -> None:
    for number in range(1000):
        peer.ask("stream.credit", m.Credit(number, 4096), message_id=number)
    assert peer.end_of(peer.ask("daemon.status", message_id=1))[0] is Kind.REPLY


def test_a_request_cannot_cancel_itself(peer: Peer) -> None:
    peer.ask("request.cancel", m.Cancel(id=4), message_id=4)
    assert error(peer) == (4, "no_such_request")


GOLDEN = [
    [envelope(op=op), bytes(msgpack.packb(body))]
    for op in CATALOGUE
    for body in ({}, {"model": "a"}, {"prompt": "x", "max_tokens": 1}, {"id": 1, "chunks": 1}, {"path": "/dev/null"})
]


@st.composite
def messages(draw: st.DrawFn) -> list[bytes]:
    """Nought to five frames: noise, or what the protocol allows with bytes of it changed."""
    if draw(st.booleans()):
        return draw(st.lists(st.binary(max_size=64), max_size=5))
    frames = [bytearray(frame) for frame in draw(st.sampled_from(GOLDEN))]
    for frame in frames:
        for _ in range(draw(st.integers(0, 3))):
            frame[draw(st.integers(0, len(frame) - 1))] = draw(st.integers(0, 255))
    frames += [bytearray(frame) for frame in draw(st.lists(st.binary(max_size=8), max_size=2))]
    return [bytes(frame) for frame in frames]


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(batch=st.lists(messages(), min_size=1, max_size=20))
def test_whatever_is_said_it_goes_on(daemon: DaemonProcess, batch: list[list[bytes]]) -> None:
    with Peer(daemon.socket) as peer:
        for frames in batch:
            if frames:
                peer.send(*frames)
        kind, body = peer.end_of(peer.ask("daemon.status", message_id=2**40))
        assert kind is Kind.REPLY
        assert msgspec.msgpack.decode(body, type=m.Status).pid == daemon.process.pid


def test_no_state_was_harmed(daemon: DaemonProcess) -> None:
    client = daemon.client()
    client.load("a")
    assert [row.name for row in client.models().models] == ["a"]
    assert client.infer("x", "a", max_tokens=3).finish == "length"
    assert not list(Path(daemon.folder / "state").rglob("*.new"))
