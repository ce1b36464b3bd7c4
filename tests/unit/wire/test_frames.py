"""Envelopes and bodies: what is refused with which code and id, and what is bounded before it is decoded."""

import struct
import tracemalloc
from collections.abc import Callable

import msgspec
import pytest

from h2qd.wire import messages as m
from h2qd.wire.frames import (
    EMPTY_BODY,
    Kind,
    Request,
    Response,
    WireError,
    decode_body,
    encode,
    request_frames,
    response_frames,
    split_request,
    split_response,
)
from h2qd.wire.limits import CONTROL_BYTES_MAX, ENVELOPE_BYTES_MAX, ID_MAX, PROMPT_BYTES_MAX, PROTOCOL_VERSION

STATUS = Request(PROTOCOL_VERSION, 7, "daemon.status")
KIB = 1024


def refused(call: Callable[[], object]) -> WireError:
    with pytest.raises(WireError) as caught:
        call()
    return caught.value


def announced(head: bytes, count: int) -> bytes:
    return head + struct.pack(">I", count)


def test_a_request_without_a_body_has_an_empty_one() -> None:
    assert request_frames(STATUS)[1] == EMPTY_BODY
    assert split_request(request_frames(STATUS)[:1]) == (STATUS, EMPTY_BODY)


def test_an_error_names_a_registered_code() -> None:
    with pytest.raises(ValueError, match="no_such_code"):
        WireError("no_such_code", "text")


@pytest.mark.parametrize("count", [0, 3, 1000])
def test_a_message_of_other_than_two_frames_is_malformed(count: int) -> None:
    error = refused(lambda: split_request([encode(STATUS)] * count))
    assert (error.code, error.message_id) == ("malformed", None)
    assert str(count) in error.message


def test_the_size_of_an_envelope_is_checked_before_it_is_read() -> None:
    padded = encode(STATUS) + bytes(ENVELOPE_BYTES_MAX - len(encode(STATUS)))
    assert refused(lambda: split_request([padded])).code == "malformed"
    assert refused(lambda: split_request([padded + b"\0"])).code == "too_large"


def test_the_size_of_a_body_is_checked_before_it_is_read() -> None:
    body = encode(m.Infer(prompt="x" * 100))
    assert decode_body(body, m.Infer, len(body), 7).prompt == "x" * 100
    error = refused(lambda: decode_body(body, m.Infer, len(body) - 1, 7))
    assert (error.code, error.message_id) == ("too_large", 7)


def test_a_refusal_names_the_field_and_shows_no_control_characters() -> None:
    error = refused(lambda: decode_body(b"\x81\xa5\x1b[31m\x01", m.Empty, KIB, 7))
    assert "\x1b" not in error.message
    assert "\\x1b[31m" in error.message
    assert "$.chunks" in refused(lambda: decode_body(encode(m.Credit(1, 0)), m.Credit, KIB)).message


def test_another_version_is_told_before_anything_else_of_its_envelope() -> None:
    strange = msgspec.msgpack.encode({"v": 9, "id": ID_MAX, "call": ["x"]})
    error = refused(lambda: split_request([strange]))
    assert (error.code, error.message_id) == ("unsupported_version", ID_MAX)


@pytest.mark.parametrize("text", ["\udc80", "a\ud800b"])
def test_text_that_is_no_unicode_cannot_be_sent(text: str) -> None:
    assert refused(lambda: encode(m.Infer(prompt=text))).code == "invalid_request"


@pytest.mark.parametrize("kind", list(Kind))
def test_responses_carry_version_id_and_kind(kind: Kind) -> None:
    envelope, body = split_response(response_frames(3, kind, m.EventsEnd(seq=1)))
    assert envelope == Response(PROTOCOL_VERSION, 3, kind)
    assert decode_body(body, m.EventsEnd, KIB) == m.EventsEnd(seq=1)


@pytest.mark.parametrize(
    "frames",
    [[], [b"\x80"], [b"\x80"] * 3, [b"\x80", b"\x80"], [b"", b""], [b"\xff", b""]],
    ids=["none", "one", "three", "empty map", "no bytes", "no map"],
)
def test_a_client_is_told_of_a_message_that_is_none(frames: list[bytes]) -> None:
    assert refused(lambda: split_response(frames)).code == "malformed"


def test_replies_and_their_envelopes_may_grow() -> None:
    envelope = msgspec.msgpack.encode({"v": 1, "id": 3, "kind": "reply", "later": {"deep": [1, 2.5, None, b"x"]}})
    body = msgspec.msgpack.encode({"seq": 4, "later": [[]]})
    response, raw = split_response([envelope, body])
    assert (response.id, decode_body(raw, m.EventsEnd, KIB).seq) == (3, 4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("field", ["temperature", "top_p", "min_p", "repeat_penalty", "logit_bias"])
def test_numbers_are_finite(field: str, value: float) -> None:
    body = msgspec.msgpack.encode({"prompt": "", field: {"1": value} if field == "logit_bias" else value})
    assert refused(lambda: decode_body(body, m.Infer, KIB)).code == "invalid_request"


@pytest.mark.parametrize("key", ["", "-1", "01", "1\n", "٣", "1.0", "99999999999"])
def test_a_biased_token_is_a_decimal_number(key: str) -> None:
    body = msgspec.msgpack.encode({"prompt": "", "logit_bias": {key: 1}})
    assert refused(lambda: decode_body(body, m.Infer, KIB)).code == "invalid_request"
    assert decode_body(msgspec.msgpack.encode({"prompt": "", "logit_bias": {"0": 1}}), m.Infer, KIB).logit_bias == {
        "0": 1
    }


@pytest.mark.parametrize("role", ["", "User", "user\n", "us er", "ü", "a" * 33])
def test_a_role_is_a_lower_case_word(role: str) -> None:
    body = msgspec.msgpack.encode({"messages": [{"role": role, "content": ""}]})
    assert refused(lambda: decode_body(body, m.Chat, KIB)).code == "invalid_request"


BOMBS = {
    "empty lists": (b"\x90" * (8 << 20), m.Infer),
    "a list of empty lists": (announced(b"\xdd", 8 << 20) + b"\x90" * (8 << 20), m.Empty),
    "lists for a string": (b"\x81\xa6prompt" + announced(b"\xdd", 8 << 20) + b"\x90" * (8 << 20), m.Infer),
    "lists under an unknown key": (b"\x81\xa1k" + announced(b"\xdd", 8 << 20) + b"\x90" * (8 << 20), m.Empty),
    "stops": (b"\x81\xa4stop" + announced(b"\xdd", 4 << 20) + b"\xa1a" * (4 << 20), m.Infer),
    "messages": (b"\x81\xa8messages" + announced(b"\xdd", 8 << 20) + b"\x80" * (8 << 20), m.Chat),
    "biases": (b"\x81\xaalogit_bias" + announced(b"\xdf", 2 << 20) + b"\xa10\x00" * (2 << 20), m.Infer),
    "nesting": (b"\x91" * (8 << 20), m.Infer),
    "nesting under a key": (b"\x81\xa4stop" + b"\x91" * (8 << 20), m.Infer),
    "a reply that grew lists": (b"\x81\xa1k" + announced(b"\xdd", 8 << 20) + b"\x90" * (8 << 20), m.EventsEnd),
    "a reply that grew nesting": (b"\x81\xa1k" + b"\x91" * (8 << 20), m.EventsEnd),
    "notices' data": (b"\x81\xa4data" + announced(b"\xdf", 8 << 20) + b"\x90" * (8 << 20), m.Notice),
}


@pytest.mark.parametrize(("bomb", "kind"), BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_of_eight_mebibytes_takes_no_memory(bomb: bytes, kind: type[msgspec.Struct]) -> None:
    tracemalloc.start()
    try:
        error = refused(lambda: decode_body(bomb, kind, 1 << 30))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert error.code == "invalid_request"
    assert peak < 256 * KIB


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (announced(b"\xdf", 2**32 - 1), m.Empty),
        (announced(b"\xdf", 2**32 - 1) + b"\xa6prompt\xa0", m.Infer),
        (b"\x81\xa6prompt" + announced(b"\xdb", 2**32 - 1), m.Infer),
        (b"\x81\xa6prompt" + announced(b"\xc6", 2**32 - 1), m.Infer),
        (b"\x81\xa4stop" + announced(b"\xdd", 2**32 - 1), m.Infer),
        (b"\x81\xaalogit_bias" + announced(b"\xdf", 2**32 - 1), m.Infer),
        (b"\x81\xa8messages" + announced(b"\xdd", 2**32 - 1), m.Chat),
        (b"\x81\xa6values" + announced(b"\xdd", 2**32 - 1), m.Config),
        (b"\x81\xa9libraries" + announced(b"\xdf", 2**32 - 1), m.Version),
        (b"\x81\xa1k" + announced(b"\xc9", 2**32 - 1), m.EventsEnd),
    ],
)
def test_a_length_that_lies_takes_no_memory(body: bytes, kind: type[msgspec.Struct]) -> None:
    tracemalloc.start()
    try:
        error = refused(lambda: decode_body(body, kind, KIB))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert error.code == "invalid_request"
    assert peak < 256 * KIB


@pytest.mark.parametrize("depth", [500, 100_000])
@pytest.mark.parametrize("step", [b"\x91", b"\x81\xa1a", b"\x81\xa6values\x91", b"\x81\x90"])
def test_nesting_ends_in_an_error(step: bytes, depth: int) -> None:
    for kind in (m.Empty, m.Infer, m.Chat, m.Config, m.Notice):
        with pytest.raises(WireError):
            decode_body(step * depth, kind, 1 << 30)
    envelope = b"\x83\xa1v\x02\xa2id\x07\xa1k" + step * depth
    with pytest.raises(WireError):
        split_request([envelope[:ENVELOPE_BYTES_MAX], b"\x80"])
    with pytest.raises(WireError):
        split_response([envelope, b"\x80"])


def test_the_largest_body_fits_and_no_prompt_command_may_carry_it() -> None:
    prompt = "x" * (PROMPT_BYTES_MAX - len(encode(m.Infer(prompt="x" * 70_000))) + 70_000)
    body = encode(m.Infer(prompt=prompt))
    assert len(body) == PROMPT_BYTES_MAX
    assert decode_body(body, m.Infer, PROMPT_BYTES_MAX).prompt == prompt
    assert refused(lambda: decode_body(body, m.Infer, CONTROL_BYTES_MAX)).code == "too_large"
