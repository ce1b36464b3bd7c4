"""The wire against bytes that nobody foresaw: it answers with a value or a `WireError`, and with nothing else.

Messages are built from the very types that the decoder checks, so a shape that is added is tested without more ado.
"""

import re
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect as types

from h2qd.wire import document, workers
from h2qd.wire.catalogue import CATALOGUE
from h2qd.wire.codes import CODES
from h2qd.wire.frames import (
    Request,
    Response,
    WireError,
    decode_body,
    encode,
    split_request,
    split_response,
)
from h2qd.wire.limits import ENVELOPE_BYTES_MAX, FRAME_BYTES_MAX, ID_MAX, NAME_CHARS_MAX
from h2qd.wire.messages import ErrorReply
from h2qd.wire.names import name_fault, shown, suggest_name
from tests.golden import generate

QUICK = settings(max_examples=20, deadline=None)
THOROUGH = settings(max_examples=200, deadline=None)

BODIES = [*document.request_shapes(), *document.reply_shapes()]
WORKER_MESSAGES: list[type[msgspec.Struct]] = [
    *workers.FromWorker.__args__,
    *workers.ToWorker.__args__,
    *workers.FromZygote.__args__,
    workers.ToZygote,
]
GOLDEN = {
    f"{file}/{entry.name}": [bytes.fromhex(frame) for frame in entry.frames]
    for file in generate.FILES
    for entry in generate.load(file).messages
}
FRAMES = [frame for frames in GOLDEN.values() for frame in frames]

# What the specification of msgpack gives a meaning to: more of a mutation than random bytes get to.
OPCODES = st.sampled_from([b"\xc0", b"\xc1", b"\xc2", b"\x80", b"\x81", b"\x90", b"\x91", b"\xa0", b"\xff", b"\x7f"])
LENGTHS = st.builds(
    lambda opcode, count: bytes([opcode]) + count.to_bytes(4, "big"),
    st.sampled_from([0xC6, 0xC9, 0xCA, 0xCE, 0xD2, 0xDB, 0xDD, 0xDF]),
    st.sampled_from([0, 1, 2**16, 2**31, 2**32 - 1]),
)
WIDE = st.builds(
    lambda opcode, rest: bytes([opcode]) + rest,
    st.sampled_from([0xCB, 0xCF, 0xD3]),
    st.binary(min_size=8, max_size=8),
)
PIECES = st.one_of(OPCODES, LENGTHS, WIDE, st.binary(max_size=8), st.sampled_from(FRAMES))
BYTES = st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=12).map(b"".join))

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.integers(-5, 5), inner, max_size=4)
    ),
    max_leaves=12,
)


def of_number(kind: types.IntType | types.FloatType) -> st.SearchStrategy[Any]:
    if isinstance(kind, types.IntType):
        return st.integers(-ID_MAX if kind.ge is None else kind.ge, ID_MAX if kind.le is None else kind.le)
    low = kind.ge if kind.gt is None else kind.gt
    return st.floats(low, kind.le, exclude_min=kind.gt is not None, allow_nan=False, allow_infinity=False)


def of_text(kind: types.StrType) -> st.SearchStrategy[str]:
    if kind.pattern:
        longest = kind.max_length or 100
        return st.from_regex(re.compile(kind.pattern), fullmatch=True).filter(lambda text: len(text) <= longest)
    return st.text(min_size=kind.min_length or 0, max_size=min(kind.max_length or 40, 40))


def of_type(kind: types.Type) -> st.SearchStrategy[Any]:
    """Values that a field of this type takes, at its bounds as well as within."""
    match kind:
        case types.IntType() | types.FloatType():
            return of_number(kind)
        case types.StrType():
            return of_text(kind)
        case types.BytesType():
            return st.binary(min_size=kind.min_length or 0, max_size=min(kind.max_length or 40, 40))
        case types.LiteralType():
            return st.sampled_from(kind.values)
        case types.EnumType():
            return st.sampled_from(list(kind.cls))
        case types.ListType():
            return st.lists(of_type(kind.item_type), min_size=kind.min_length or 0, max_size=4)
        case types.DictType():
            return st.dictionaries(of_type(kind.key_type), of_type(kind.value_type), max_size=4)
        case types.UnionType():
            return st.one_of([of_type(each) for each in kind.types])
        case types.StructType():
            return of_shape(kind.cls)
    return {types.NoneType: st.none(), types.BoolType: st.booleans()}[type(kind)]


def of_shape(shape: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    fields = document.fields_of(shape)
    return st.fixed_dictionaries({field.name: of_type(field.type) for field in fields}).map(
        lambda kept: shape(**kept)
    )


def lenient(value: Any) -> Any:
    """`value` as another library may write it: whole floats as integers."""
    match value:
        case dict():
            return {key: lenient(each) for key, each in value.items()}
        case list():
            return [lenient(each) for each in value]
        case float() if value.is_integer() and abs(value) < 2**53:
            return int(value)
    return value


def take(frames: list[bytes]) -> None:
    """Read frames in every way there is; only `WireError` may come of it, with a code, and text that can be shown."""
    for read in (split_request, split_response):
        try:
            envelope, _ = read(frames)
        except WireError as error:
            assert_sound(error)
        else:
            assert 0 <= envelope.id <= ID_MAX
    for frame in frames:
        for shape in BODIES:
            take_body(frame, shape)


def take_body(body: bytes, shape: type[msgspec.Struct]) -> None:
    try:
        value = decode_body(body, shape, FRAME_BYTES_MAX, 7)
    except WireError as error:
        assert_sound(error, 7)
    else:
        assert isinstance(value, shape)


def assert_sound(error: WireError, message_id: int | None = None) -> None:
    assert error.code in CODES
    assert error.message.startswith("cannot ")
    assert error.message.isprintable()
    assert len(error.message) < 3000
    assert message_id in {None, error.message_id}
    assert error.message_id is None or 0 <= error.message_id <= ID_MAX
    encode(ErrorReply(code=error.code, message=error.message))


@THOROUGH
@given(st.lists(BYTES, max_size=3))
def test_any_frames_end_in_a_value_or_a_wire_error(frames: list[bytes]) -> None:
    take(frames)


@THOROUGH
@given(PLAIN)
def test_any_msgpack_ends_in_a_value_or_a_wire_error(value: Any) -> None:
    take([msgspec.msgpack.encode(value)] * 2)


@QUICK
@given(st.data())
@pytest.mark.parametrize("shape", BODIES, ids=lambda shape: shape.__name__)
def test_any_value_in_any_field_ends_in_a_value_or_a_wire_error(
    shape: type[msgspec.Struct], data: st.DataObject
) -> None:
    """Close misses: a valid message with one field replaced by anything."""
    good = msgspec.to_builtins(data.draw(of_shape(shape)))
    fields = [field.encode_name for field in document.fields_of(shape)]
    name = data.draw(st.sampled_from([*fields, "unknown"]))
    take_body(msgspec.msgpack.encode({**good, name: data.draw(PLAIN)}), shape)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_frames_cut_anywhere_or_too_long(name: str) -> None:
    file, frames = name.partition("/")[0], GOLDEN[name]
    for index, frame in enumerate(frames):
        for end in range(len(frame)):
            cut = [*frames[:index], frame[:end], *frames[index + 1 :]]
            if index == 0 and file != "refused":
                with pytest.raises(WireError):
                    (split_request if file == "requests" else split_response)(cut)
            take_body_as_sent(cut)
        for tail in (b"\x80", b"\xc1", b"\0", frame):
            take_body_as_sent([*frames[:index], frame + tail, *frames[index + 1 :]])


def take_body_as_sent(frames: list[bytes]) -> None:
    """Read a request as a server does."""
    try:
        request, body = split_request(frames)
    except WireError as error:
        assert_sound(error)
        return
    if request.op in CATALOGUE:
        take_body(body, CATALOGUE[request.op].request)


@pytest.mark.parametrize("shape", BODIES, ids=lambda shape: shape.__name__)
@QUICK
@given(data=st.data())
def test_a_cut_or_prolonged_body_is_always_refused(shape: type[msgspec.Struct], data: st.DataObject) -> None:
    body = encode(data.draw(of_shape(shape)))
    end = data.draw(st.integers(0, len(body) - 1))
    tail = data.draw(st.binary(min_size=1, max_size=4))
    for wrong in (body[:end], body + tail):
        with pytest.raises(WireError):
            decode_body(wrong, shape, FRAME_BYTES_MAX)


@THOROUGH
@given(st.data())
def test_mutated_golden_frames_end_in_a_value_or_a_wire_error(data: st.DataObject) -> None:
    frame = data.draw(st.sampled_from([frame for frame in FRAMES if frame]))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(frame)))
        end = data.draw(st.integers(start, min(len(frame), start + 4)))
        frame = frame[:start] + data.draw(PIECES) + frame[end:]
    take([frame, frame])


@pytest.mark.parametrize("shape", BODIES, ids=lambda shape: shape.__name__)
@QUICK
@given(data=st.data())
def test_every_body_survives_the_way_there(shape: type[msgspec.Struct], data: st.DataObject) -> None:
    value = data.draw(of_shape(shape))
    body = encode(value)
    assert decode_body(body, shape, FRAME_BYTES_MAX) == value
    other = msgpack.unpackb(body, strict_map_key=True)
    for kept in (other, lenient(other)):
        assert decode_body(msgpack.packb(kept), shape, FRAME_BYTES_MAX) == value


@pytest.mark.parametrize("shape", WORKER_MESSAGES, ids=lambda shape: shape.__name__)
@QUICK
@given(data=st.data())
def test_every_worker_message_survives_the_way_there(shape: type[msgspec.Struct], data: st.DataObject) -> None:
    value = data.draw(of_shape(shape))
    (body,) = workers.Reassembler().feed(workers.frame(value))
    assert msgspec.msgpack.decode(body, type=shape) == value


@THOROUGH
@given(BYTES)
def test_any_bytes_of_a_worker_end_in_a_value_or_one_of_the_named_errors(body: bytes) -> None:
    for decoder in (workers.from_worker, workers.to_worker, workers.from_zygote, workers.to_zygote):
        try:
            decoder.decode(body)
        except workers.UNREADABLE:
            continue


@QUICK
@given(st.lists(st.binary(max_size=40), max_size=6), st.data())
def test_a_channel_gives_back_what_was_framed_however_it_is_cut(texts: list[bytes], data: st.DataObject) -> None:
    messages = [workers.Text(request=1, text=text.hex(), tokens=1) for text in texts]
    stream = b"".join(workers.frame(message) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    inbox = workers.Reassembler()
    bodies = [
        body
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)
        for body in inbox.feed(stream[start:end])
    ]
    assert [workers.from_worker.decode(body) for body in bodies] == messages


@QUICK
@given(of_shape(Request), st.binary(max_size=50))
def test_every_request_envelope_survives_the_way_there(request: Request, body: bytes) -> None:
    frames = [encode(request), body]
    if request.v == 1:
        assert split_request(frames) == (request, body)
    else:
        with pytest.raises(WireError) as refused:
            split_request(frames)
        assert (refused.value.code, refused.value.message_id) == ("unsupported_version", request.id)
    assert len(frames[0]) <= ENVELOPE_BYTES_MAX


@QUICK
@given(of_shape(Response), st.binary(max_size=50))
def test_every_response_envelope_survives_the_way_there(response: Response, body: bytes) -> None:
    assert split_response([encode(response), body]) == (response, body)


@THOROUGH
@given(st.text(max_size=200))
def test_what_is_suggested_is_a_name(stem: str) -> None:
    name = suggest_name(stem)
    assert name_fault(name) is None
    assert len(name) <= NAME_CHARS_MAX
    assert suggest_name(name.replace("/", "-").replace(":", "-")) == name


@THOROUGH
@given(st.text(st.characters(), max_size=300), st.integers(1, 250))
def test_what_is_shown_is_printable_and_bounded(text: str, chars_max: int) -> None:
    safe = shown(text, chars_max)
    assert safe.isprintable()
    assert len(safe) <= 10 * chars_max
