"""Messages as they travel: an envelope frame and a body frame, both msgpack maps.

This module turns bytes into typed envelopes and bodies and back. Size is checked before anything is
decoded; unknown keys are refused in requests and ignored in replies. It decides nothing else.
Errors: `WireError` with a code of `codes.CODES`; no other exception leaves this module.
"""

from enum import StrEnum
from typing import Annotated, TypeVar

import msgspec

from h2qd.wire.codes import CODES
from h2qd.wire.limits import (
    DEADLINE_MS_MAX,
    ENVELOPE_BYTES_MAX,
    FRAMES_MAX,
    ID_MAX,
    PROTOCOL_VERSION,
)
from h2qd.wire.names import shown

Id = Annotated[int, msgspec.Meta(ge=0, le=ID_MAX)]
Body = TypeVar("Body", bound=msgspec.Struct)


class WireError(Exception):
    """A message that cannot be taken: `code` is one of `codes.CODES`, `message_id` the id to answer to, if known."""

    def __init__(self, code: str, message: str, message_id: int | None = None) -> None:
        super().__init__(message)
        if code not in CODES:
            raise ValueError(code)
        self.code = code
        self.message = message
        self.message_id = message_id


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The envelope of a request. `op` is a command of the catalogue; `deadline_ms` counts from its arrival."""

    v: int
    id: Id
    op: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    deadline_ms: Annotated[int, msgspec.Meta(ge=1, le=DEADLINE_MS_MAX)] | None = None


class Kind(StrEnum):
    """What a message from the daemon is. Exactly one `reply` or `error` ends each request."""

    REPLY = "reply"
    ERROR = "error"
    CHUNK = "chunk"
    PROGRESS = "progress"


class Response(msgspec.Struct, frozen=True):
    """The envelope of everything the daemon sends; `id` echoes the request's."""

    v: int
    id: Id
    kind: Kind


class _Version(msgspec.Struct, frozen=True):
    """What is read of an envelope that does not decode, to say why and to whom."""

    v: int | None = None
    id: Id | None = None


_encoder = msgspec.msgpack.Encoder()
_request_decoder = msgspec.msgpack.Decoder(Request)
_response_decoder = msgspec.msgpack.Decoder(Response)
_version_decoder = msgspec.msgpack.Decoder(_Version)
_UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)
EMPTY_BODY = b"\x80"


def encode(value: msgspec.Struct) -> bytes:
    """`value` as msgpack: maps with string keys, binary as bin.

    Raises `WireError` (invalid_request) for text that is no Unicode, such as a command-line argument of stray bytes.
    """
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError as error:
        raise WireError("invalid_request", f"cannot send text that is not Unicode: {shown(str(error))}") from None


def request_frames(request: Request, body: msgspec.Struct | None = None) -> list[bytes]:
    """The frames of a request; an absent body is an empty map."""
    return [encode(request), EMPTY_BODY if body is None else encode(body)]


def response_frames(message_id: int, kind: Kind, body: msgspec.Struct) -> list[bytes]:
    """The frames of anything the daemon says about request `message_id`."""
    return [encode(Response(PROTOCOL_VERSION, message_id, kind)), encode(body)]


def split_request(frames: list[bytes]) -> tuple[Request, bytes]:
    """The envelope and the still encoded body of a request.

    Raises `WireError`: malformed, too_large, unsupported_version, invalid_request.
    """
    if not 1 <= len(frames) <= FRAMES_MAX:
        raise WireError("malformed", f"cannot read a message of {len(frames)} frames: it has an envelope and a body")
    envelope = frames[0]
    if len(envelope) > ENVELOPE_BYTES_MAX:
        raise WireError(
            "too_large", f"cannot read an envelope of {len(envelope)} bytes: at most {ENVELOPE_BYTES_MAX}"
        )
    try:
        request = _request_decoder.decode(envelope)
    except _UNREADABLE as error:
        raise _envelope_fault(envelope, error) from None
    if request.v != PROTOCOL_VERSION:
        raise _version_fault(request.v, request.id)
    return request, frames[1] if len(frames) == FRAMES_MAX else EMPTY_BODY


def _envelope_fault(envelope: bytes, error: Exception) -> WireError:
    """Why the envelope did not decode: another version's envelope may well differ, so the version is told first."""
    try:
        probe = _version_decoder.decode(envelope)
    except _UNREADABLE:
        return WireError("malformed", "cannot read the envelope: it is not a msgpack map with v, id and op")
    if probe.v is not None and probe.v != PROTOCOL_VERSION:
        return _version_fault(probe.v, probe.id)
    return WireError("invalid_request", f"cannot read the envelope: {shown(str(error))}", probe.id)


def _version_fault(version: int, message_id: int | None) -> WireError:
    text = f"cannot speak protocol version {version}: this daemon speaks {PROTOCOL_VERSION}"
    return WireError("unsupported_version", text, message_id)


def split_response(frames: list[bytes]) -> tuple[Response, bytes]:
    """The envelope and the still encoded body of a message from the daemon. Raises `WireError` (malformed)."""
    if len(frames) != FRAMES_MAX:
        raise WireError("malformed", f"cannot read a response of {len(frames)} frames")
    try:
        return _response_decoder.decode(frames[0]), frames[1]
    except _UNREADABLE as error:
        raise WireError("malformed", f"cannot read the response's envelope: {shown(str(error))}") from None


def decode_body(body: bytes, kind: type[Body], bytes_max: int, message_id: int | None = None) -> Body:
    """`body` as a `kind`. Raises `WireError`: too_large before decoding, invalid_request (naming the field) after."""
    if len(body) > bytes_max:
        raise WireError("too_large", f"cannot read a body of {len(body)} bytes: at most {bytes_max} here", message_id)
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except _UNREADABLE as error:
        raise WireError("invalid_request", f"cannot read the body: {shown(str(error))}", message_id) from None
