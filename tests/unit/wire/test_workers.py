"""What supervisor and workers say: framed however the bytes arrive, and bounded."""

import struct
from typing import Any

import msgspec
import pytest

from h2qd.wire import workers as w
from h2qd.wire.limits import (
    LABEL_CHARS_MAX,
    LAYERS_MAX,
    TOOL_ARGUMENTS_CHARS_MAX,
    TOOL_CALLS_MAX,
    TOOL_NAME_CHARS_MAX,
    WORKER_FRAME_BYTES_MAX,
)
from h2qd.wire.messages import ModelFacts

MESSAGES: list[w.FromWorker] = [
    w.Loading(fraction=0.5),
    w.Loaded(ctx=4096, load_ms=412.5),
    w.Text(request=1, text="größe 🙂", tokens=3),
    w.Pong(n=1, beat=2, busy=True),
    w.Inspected(facts=ModelFacts(heads=[4, 0]), sha256="0f" * 32, identity=[1, 2**63, 3, 1_760_000_000_000_000_000]),
]
STREAM = b"".join(w.frame(message) for message in MESSAGES)
NAN = float("nan")
CALL = {"id": "a", "name": "t", "arguments": "{}"}
ENDED = {
    "t": "generated",
    "finish": "stop",
    **dict.fromkeys(("request", "prompt_tokens", "completion_tokens", "cached_tokens"), 1),
    **dict.fromkeys(("prefill_ms", "first_token_ms", "decode_ms"), 1.0),
}


def pack(value: object) -> bytes:
    return msgspec.msgpack.encode(value)


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_a_stream_cut_at_any_byte_is_the_same_stream(cut: int) -> None:
    inbox = w.Reassembler()
    bodies = [*inbox.feed(STREAM[:cut]), *inbox.feed(STREAM[cut:])]
    assert [w.from_worker.decode(body) for body in bodies] == MESSAGES


def test_a_stream_arriving_byte_by_byte_is_the_same_stream() -> None:
    inbox = w.Reassembler()
    bodies = [body for byte in STREAM for body in inbox.feed(bytes([byte]))]
    assert [w.from_worker.decode(body) for body in bodies] == MESSAGES


def test_bodies_not_taken_are_kept() -> None:
    inbox = w.Reassembler()
    first = inbox.feed(STREAM)
    assert w.from_worker.decode(next(first)) == MESSAGES[0]
    first.close()  # type: ignore[attr-defined]  # a generator, promised as an iterator
    assert [w.from_worker.decode(body) for body in inbox.feed(b"")] == MESSAGES[1:]


def test_a_length_over_the_limit_ends_the_channel_before_the_body_is_read() -> None:
    inbox = w.Reassembler()
    feed = inbox.feed(w.frame(MESSAGES[0]) + struct.pack("!I", WORKER_FRAME_BYTES_MAX + 1))
    assert w.from_worker.decode(next(feed)) == MESSAGES[0]
    with pytest.raises(w.ChannelError, match="cannot read a message"):
        next(feed)
    with pytest.raises(w.ChannelError, match="cannot read a message"):
        list(inbox.feed(STREAM))


def test_the_largest_message_travels_and_a_larger_one_does_not() -> None:
    room = WORKER_FRAME_BYTES_MAX - len(w.frame(w.Text(request=1, text="x" * 70_000, tokens=0))) + 4 + 70_000
    largest = w.Text(request=1, text="x" * room, tokens=0)
    assert [w.from_worker.decode(body) for body in w.Reassembler().feed(w.frame(largest))] == [largest]
    with pytest.raises(w.ChannelError, match="cannot send a message"):
        w.frame(w.Text(request=1, text="x" * (room + 1), tokens=0))


def test_text_that_is_no_unicode_cannot_be_sent() -> None:
    with pytest.raises(w.ChannelError, match="not Unicode"):
        w.frame(w.Text(request=1, text="\udc80", tokens=1))


@pytest.mark.parametrize(
    "said",
    [
        {"t": "loading", "fraction": NAN},
        {"t": "loading", "fraction": 1.5},
        {"t": "loaded", "ctx": 2**53, "load_ms": 1.0},
        {"t": "loaded", "ctx": 1, "load_ms": float("inf")},
        {"t": "loaded", "ctx": 1, "load_ms": NAN},
        {"t": "text", "request": 1, "text": "", "tokens": -1},
        {"t": "pong", "n": 2**64 - 1, "beat": 0, "busy": False},
        {"t": "loadfailed", "code": "x" * 65, "message": ""},
        {"t": "loadfailed", "code": "load_failed", "message": "x" * 16385},
        {"t": "inspected", "sha256": "", "identity": [0] * 5, "facts": {}},
        {"t": "inspected", "sha256": "", "identity": [], "facts": {"title": "x" * (LABEL_CHARS_MAX + 1)}},
        {"t": "inspected", "sha256": "", "identity": [], "facts": {"parameters": -1}},
        {"t": "inspected", "sha256": "", "identity": [], "facts": {"heads": [0] * (LAYERS_MAX + 1)}},
        {"t": "inspected", "sha256": "", "identity": [], "facts": {"sliding": [True] * (LAYERS_MAX + 1)}},
        {"t": "generated", "request": 1, "finish": "stop"},
        {**ENDED, "tool_calls": [CALL] * (TOOL_CALLS_MAX + 1)},
        {**ENDED, "tool_calls": [{**CALL, "name": ""}]},
        {**ENDED, "tool_calls": [{**CALL, "id": "x" * (TOOL_NAME_CHARS_MAX + 1)}]},
        {**ENDED, "tool_calls": [{**CALL, "arguments": "x" * (TOOL_ARGUMENTS_CHARS_MAX + 1)}]},
        {**ENDED, "tool_calls": [{"id": "a", "name": "t"}]},
        {"t": "loading", "fraction": 0.5, "more": 1},
        {"t": "loadmodel", "backend": "llama", "path": "/", "ctx": 1},
        {"t": "forked", "worker": 1, "pid": 2},
        {},
    ],
)
def test_what_a_worker_may_not_say(said: dict[str, Any]) -> None:
    with pytest.raises(w.UNREADABLE):
        w.from_worker.decode(pack(said))


def test_calls_within_the_bounds_are_taken() -> None:
    said = w.from_worker.decode(pack({**ENDED, "tool_calls": [CALL] * TOOL_CALLS_MAX}))
    assert isinstance(said, w.Generated)
    assert said.tool_calls[-1] == w.ToolCall("a", "t", "{}")


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\x81\xa1t\xa2\xff\xff", b"\x91" * 100_000, b"\x81\xa1t" + b"\x91" * 100_000]
)
def test_bytes_that_are_no_message_end_in_one_of_the_named_errors(body: bytes) -> None:
    for decoder in (w.from_worker, w.to_worker, w.from_zygote, w.to_zygote):
        with pytest.raises(w.UNREADABLE):
            decoder.decode(body)


@pytest.mark.parametrize("status", [0, 255, -9, -64])
def test_exit_statuses_and_signals(status: int) -> None:
    reaped = w.Reaped(worker=1, pid=2, status=status, peak_bytes=3)
    assert w.from_zygote.decode(pack(reaped)) == reaped
