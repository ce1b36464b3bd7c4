"""Streams of servers: whatever pieces the bytes come in, the same parts come out, and never more than a bound."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from h2qd.worker.remote.errors import RemoteError, refused
from h2qd.worker.remote.ndjson import Lines
from h2qd.worker.remote.pace import span_s
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


@given(st.integers(100, 599), st.binary(max_size=400) | st.text(max_size=200).map(str.encode))
def test_any_refusal_becomes_words_that_can_be_shown(status: int, body: bytes) -> None:
    error = refused(status, body)
    assert error.message.isprintable()
    assert len(error.message) < 600


@given(st.text(max_size=30) | st.from_regex(r"(\d{1,7}h)?(\d{1,7}m)?(\d{1,7}(\.\d+)?s)?", fullmatch=True))
def test_any_span_is_some_seconds(text: str) -> None:
    assert span_s(text) >= 0
