"""Streams of servers: whatever pieces the bytes come in, the same parts come out, and never more than a bound."""

from contextlib import suppress
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from h2qd.wire.workers import Generate, Sampler, frame, from_worker
from h2qd.worker.engine import Said
from h2qd.worker.remote import ollama, openai
from h2qd.worker.remote.errors import RemoteError, refused
from h2qd.worker.remote.ndjson import Lines
from h2qd.worker.remote.ollama_answers import Part
from h2qd.worker.remote.pace import span_s
from h2qd.worker.remote.reply import Reply
from h2qd.worker.remote.server import decoded
from h2qd.worker.remote.sse import Events

_LINE = st.binary(max_size=40).map(lambda data: data.translate(None, b"\r\n"))
_END = st.sampled_from([b"\n", b"\r\n", b"\r"])


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """`data` in pieces, some of them empty."""
    at = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(at)]


def spec(stream: bytes) -> list[bytes]:
    """Events by the letter of the standard, over the whole stream at once."""
    text = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events: list[bytes] = []
    data: list[bytes] = []
    for line in text.split(b"\n")[:-1]:
        if not line:
            if data:
                events.append(b"\n".join(data))
            data = []
        elif line.split(b":", 1)[0] == b"data":
            value = line.split(b":", 1)[1] if b":" in line else b""
            data.append(value[1:] if value[:1] == b" " else value)
    return events


@given(
    st.lists(
        st.tuples(st.sampled_from([b"data: ", b"data:", b"event: ", b": ", b"", b"id"]), _LINE, _END), max_size=20
    ),
    st.lists(st.integers(0, 10_000), max_size=20),
    st.booleans(),
)
def test_events(lines: list[tuple[bytes, bytes, bytes]], places: list[int], bom: bool) -> None:
    stream = (b"\xef\xbb\xbf" if bom else b"") + b"".join(b"".join(line) for line in lines)
    parser = Events()
    heard = [event for piece in cut(stream, places) for event in parser.feed(piece)]
    heard += parser.finish()
    assert heard == spec(stream)


@given(st.lists(_LINE, max_size=20), st.sampled_from([b"\n", b"\r\n"]), st.lists(st.integers(0, 10_000), max_size=20))
def test_lines(lines: list[bytes], end: bytes, places: list[int]) -> None:
    stream = end.join(lines)
    parser = Lines()
    heard = [line for piece in cut(stream, places) for line in parser.feed(piece)]
    heard += parser.finish()
    assert heard == [line.strip(b"\r \t") for line in lines if line.strip(b"\r \t")]


@given(st.binary(max_size=300), st.lists(st.integers(0, 10_000), max_size=20))
def test_no_more_is_kept_than_the_bound(stream: bytes, places: list[int]) -> None:
    for parser in (Lines(64), Events(64)):
        try:
            for piece in cut(stream, places):
                for part in parser.feed(piece):
                    assert len(part) <= 64
                assert len(parser._rest) <= 64
        except RemoteError as error:
            assert error.code == "remote_failed"  # noqa: PT017 - it may be raised


@pytest.mark.parametrize(
    ("parser", "piece"), [(Lines, b"data: aaaa"), (Events, b"data: aaaa"), (Events, b"data: a\n")]
)
def test_what_never_ends_is_given_up(parser: type[Lines | Events], piece: bytes) -> None:
    def feed_for_ever() -> None:
        taking = parser(1000)
        while True:
            taking.feed(piece)

    with pytest.raises(RemoteError):
        feed_for_ever()


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def like(**fields: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    """Objects with some of these fields, right or wrong, or something else."""
    mixed = {name: value | _JSON for name, value in fields.items()}
    return st.fixed_dictionaries({}, optional=mixed) | _JSON


_TOKENS = st.lists(like(token=st.text(max_size=5), logprob=st.floats(-9, 9)), max_size=3)
_ARGUMENTS = st.sampled_from(["", "{}", '{"a":', "1}", "[]", "no"])
_CALL = like(
    index=st.integers(-1, 2),
    id=st.text(max_size=3),
    function=like(name=st.text(max_size=3), arguments=_ARGUMENTS),
)
_WHOLE_CALL = like(id=st.text(max_size=3), function=like(name=st.text(max_size=3), arguments=_JSON))
_CHOICE = like(
    delta=like(
        content=st.text(max_size=5),
        reasoning_content=st.text(max_size=5),
        reasoning=st.text(max_size=5),
        tool_calls=st.lists(_CALL, max_size=3),
    ),
    text=st.text(max_size=5),
    finish_reason=st.sampled_from(["stop", "length", "content_filter", "tool_calls"]),
    stop_reason=st.integers() | st.text(max_size=5),
    logprobs=like(content=_TOKENS, tokens=st.lists(st.text(max_size=3), max_size=3), token_logprobs=_TOKENS),
)
_EVENT = like(
    choices=st.lists(_CHOICE, max_size=2),
    usage=like(prompt_tokens=st.integers(), completion_tokens=st.integers()),
    error=like(message=st.text(max_size=5)),
)
_PART = like(
    message=like(
        content=st.text(max_size=5), thinking=st.text(max_size=5), tool_calls=st.lists(_WHOLE_CALL, max_size=3)
    ),
    thinking=st.text(max_size=5),
    response=st.text(max_size=5),
    done=st.booleans(),
    done_reason=st.text(max_size=5),
    eval_count=st.integers(),
    eval_duration=st.integers(),
    logprobs=_TOKENS,
    error=st.text(max_size=5),
)


@given(_EVENT)
def test_any_event_is_understood_or_refused(event: object) -> None:
    said: list[Said] = []
    reply = Reply(Generate(1, 4, Sampler(), prompt="", logprobs=3), said.append)
    with suppress(RemoteError):
        end = openai._heard(msgspec.json.encode(event), openai._End(), reply)
        said.append(reply.end(end.finish))
    assert_sayable(said)


@given(_PART)
def test_any_line_is_understood_or_refused(line: object) -> None:
    said: list[Said] = []
    reply = Reply(Generate(1, 4, Sampler(), prompt="", logprobs=3), said.append)
    with suppress(RemoteError):
        part = decoded(msgspec.json.encode(line), Part)
        ollama._heard(part, reply)
        said.append(ollama._ended(part, reply))
    assert_sayable(said)


def assert_sayable(said: list[Said]) -> None:
    """The supervisor takes it."""
    for message in said:
        assert from_worker.decode(frame(message)[4:]) == message


@given(st.integers(100, 599), st.binary(max_size=400) | st.text(max_size=200).map(str.encode))
def test_any_refusal_becomes_words_that_can_be_shown(status: int, body: bytes) -> None:
    error = refused(status, body)
    assert error.message.isprintable()
    assert len(error.message) < 600


@given(st.text(max_size=30) | st.from_regex(r"(\d{1,7}h)?(\d{1,7}m)?(\d{1,7}(\.\d+)?s)?", fullmatch=True))
def test_any_span_is_some_seconds(text: str) -> None:
    assert span_s(text) >= 0
