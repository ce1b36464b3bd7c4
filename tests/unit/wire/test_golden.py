"""The golden frames: our encoder makes them, an independent msgpack library agrees on them, and they never change."""

from typing import Any

import msgpack
import msgspec
import pytest

from h2qd.wire.catalogue import CATALOGUE
from h2qd.wire.frames import Kind, WireError, decode_body, split_request, split_response
from h2qd.wire.limits import PROTOCOL_VERSION
from h2qd.wire.messages import Delta, ErrorReply, Notice, Progress, Say
from tests.golden import generate
from tests.golden.cases import CASES
from tests.golden.generate import FILES, Entry, viewed

GOLDEN = {file: {entry.name: entry for entry in generate.load(file).messages} for file in FILES}
MESSAGES = [
    pytest.param(file, entry, id=f"{file}/{entry.name}")
    for file in FILES
    if file != "refused"
    for entry in GOLDEN[file].values()
]
REFUSED = [pytest.param(entry, id=entry.name) for entry in GOLDEN["refused"].values()]
LIMIT = 1 << 20


def frames_of(entry: Entry) -> list[bytes]:
    return [bytes.fromhex(frame) for frame in entry.frames]


def said_shape(name: str, kind: Kind) -> type[Say]:
    if kind is Kind.REPLY:
        reply = CATALOGUE[name].reply
        assert reply is not None
        return reply
    if kind is Kind.CHUNK:
        return Delta if name.startswith("chunk.delta") else Notice
    return Progress if kind is Kind.PROGRESS else ErrorReply


def read(file: str, entry: Entry, frames: list[bytes]) -> tuple[object, object]:
    """The typed envelope and body, as our decoder reads them."""
    if file == "requests":
        request, body = split_request(frames)
        command = CATALOGUE[request.op]
        return request, decode_body(body, command.request, command.bytes_max)
    response, body = split_response(frames)
    return response, decode_body(body, said_shape(entry.name, response.kind), LIMIT)


def unviewed(value: Any) -> Any:
    """What a view shows, with its bytes."""
    match value:
        case {"bin": str(digits)}:
            return bytes.fromhex(digits)
        case dict():
            return {key: unviewed(each) for key, each in value.items()}
        case list():
            return [unviewed(each) for each in value]
    return value


def integral(value: Any) -> Any:
    """`value` as languages with one number type write it: whole floats become integers."""
    match value:
        case dict():
            return {key: integral(each) for key, each in value.items()}
        case list():
            return [integral(each) for each in value]
        case float() if value.is_integer():
            return int(value)
    return value


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.file}/{case.name}")
def test_our_encoder_makes_exactly_these_bytes(case: Any) -> None:
    assert [frame.hex() for frame in case.frames] == GOLDEN[case.file][case.name].frames


@pytest.mark.parametrize(("file", "entry"), MESSAGES)
def test_our_decoder_and_encoder_agree_with_them(file: str, entry: Entry) -> None:
    said = read(file, entry, frames_of(entry))
    envelope, body = (viewed(msgspec.to_builtins(value, builtin_types=(bytes,))) for value in said)
    assert {"envelope": envelope, "body": body} == entry.view


@pytest.mark.parametrize(("file", "entry"), MESSAGES)
def test_an_independent_library_reads_them(file: str, entry: Entry) -> None:
    envelope, body = (viewed(msgpack.unpackb(frame, strict_map_key=True)) for frame in frames_of(entry))
    assert {"envelope": envelope, "body": body} == entry.view, file


@pytest.mark.parametrize("single_floats", [False, True])
@pytest.mark.parametrize("convert", [lambda value: value, integral], ids=["floats", "whole"])
@pytest.mark.parametrize(("file", "entry"), MESSAGES)
def test_we_read_what_an_independent_library_writes(
    file: str, entry: Entry, convert: Any, single_floats: bool
) -> None:
    assert entry.view is not None
    frames = [
        msgpack.packb(convert(unviewed(entry.view[part])), use_single_float=single_floats)
        for part in ("envelope", "body")
    ]
    assert read(file, entry, frames) == read(file, entry, frames_of(entry))


def take(frames: list[bytes]) -> object:
    """A request as a server reads it."""
    request, body = split_request(frames)
    command = CATALOGUE[request.op]
    return decode_body(body, command.request, command.bytes_max, request.id)


@pytest.mark.parametrize("entry", REFUSED)
def test_what_cannot_be_read_is_refused_with_its_code_and_id(entry: Entry) -> None:
    with pytest.raises(WireError) as refused:
        take(frames_of(entry))
    assert (refused.value.code, refused.value.message_id or 0) == (entry.code, entry.id)


def test_golden_frames_change_only_with_the_protocol_version() -> None:
    version, kept = generate.locked()
    assert version == PROTOCOL_VERSION
    assert {generate.load(file).protocol for file in FILES} == {PROTOCOL_VERSION}
    assert {
        f"{file}/{name}": generate.digest(entry.frames) for file in FILES for name, entry in GOLDEN[file].items()
    } == kept


def test_every_case_stands_in_its_file() -> None:
    for file, entries in generate.entries().items():
        assert [entry for entry in entries if GOLDEN[file].get(entry.name) != entry] == []


def test_every_command_reply_chunk_and_kind_has_a_golden_frame() -> None:
    asked = {entry.view["envelope"]["op"] for entry in GOLDEN["requests"].values() if entry.view}
    assert asked == set(CATALOGUE)
    assert {name for name, command in CATALOGUE.items() if command.reply} <= set(GOLDEN["replies"])
    said = [entry for file in ("replies", "streams", "errors") for entry in GOLDEN[file].values()]
    assert {entry.view["envelope"]["kind"] for entry in said if entry.view} == set(Kind)
    chunks = {type(read("streams", entry, frames_of(entry))[1]) for entry in GOLDEN["streams"].values()}
    assert {command.chunk for command in CATALOGUE.values() if command.chunk} <= chunks


def test_the_generator_refuses_to_change_a_frame(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    before = {path: path.read_bytes() for path in generate.FOLDER.glob("*.json")}
    first = CASES[0]
    monkeypatch.setattr(
        generate, "CASES", [type(first)(first.file, first.name, first.description, [b"\x80", b"\x80"])]
    )
    assert generate.main() == 1
    assert first.name in capsys.readouterr().err
    assert {path: path.read_bytes() for path in generate.FOLDER.glob("*.json")} == before


def test_the_generator_keeps_frames_whose_case_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for path in (generate.LOCK, *generate.FOLDER.glob("*.json")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    monkeypatch.setattr(generate, "LOCK", tmp_path / "LOCK")
    monkeypatch.setattr(generate, "CASES", CASES[1:])
    assert generate.main() == 0
    assert CASES[0].name in {entry.name for entry in generate.load(CASES[0].file).messages}
    assert f"{CASES[0].file}/{CASES[0].name}" in generate.locked()[1]
