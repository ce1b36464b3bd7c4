"""PROTOCOL.md is what the code enforces: its generated parts, its dissections, and nothing left out."""

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import inspect as types

from h2qd.wire import document, limits
from h2qd.wire import messages as m
from h2qd.wire.catalogue import CATALOGUE
from h2qd.wire.codes import CODES
from h2qd.wire.frames import (
    Kind,
    Request,
    decode_body,
    request_frames,
    response_frames,
    split_request,
    split_response,
)

TEXT = document.PATH.read_text(encoding="utf-8")


def test_the_generated_parts_are_up_to_date() -> None:
    assert document.rewritten(TEXT) == TEXT, "run: python -m h2qd.wire.document"


STALE = re.sub(r"(<!-- generated: limits -->).*(<!-- end: limits -->)", r"\1\2", TEXT, flags=re.DOTALL)


def test_run_as_a_program_it_writes_the_document_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "PROTOCOL.md"
    path.write_text(STALE, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["document", str(path)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(document.__file__, run_name="__main__")
    assert ended.value.code == 0
    assert path.read_text(encoding="utf-8") == TEXT != STALE


def test_by_default_it_is_the_protocol_that_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "PROTOCOL.md"
    path.write_text(STALE, encoding="utf-8")
    monkeypatch.setattr(document, "PATH", path)
    assert document.main([]) == 0
    assert path.read_text(encoding="utf-8") == TEXT


@pytest.mark.parametrize("marker", ["<!-- generated: limits -->", "<!-- end: errors -->"])
@pytest.mark.parametrize("times", [0, 2])
def test_a_marker_that_does_not_stand_once_is_an_error(marker: str, times: int) -> None:
    with pytest.raises(ValueError, match="markers"):
        document.rewritten(TEXT.replace(marker, marker * times))


def test_every_limit_of_the_protocol_is_explained() -> None:
    internal = {"WORKER_FRAME_BYTES_MAX"}
    assert set(document.LIMITS) | internal == {name for name in vars(limits) if name.isupper()}
    assert [name for name in document.LIMITS if f"| `{name}` | {getattr(limits, name)} |" not in TEXT] == []


def test_every_code_stands_in_the_table_of_errors() -> None:
    assert [
        code.name
        for code in CODES.values()
        if f"| `{code.name}` | {'yes' if code.retryable else 'no'} | {code.exit_status} | {code.meaning} |"
        not in TEXT
    ] == []


def test_every_command_and_shape_is_described_once() -> None:
    for op, command in CATALOGUE.items():
        assert TEXT.count(f"| `{op}` | {command.access.name.lower()} |") == 1
    headings = re.findall(r"^#### (\w+)$", TEXT, re.MULTILINE)
    assert sorted(headings) == sorted(set(headings))
    assert set(headings) == {shape.__name__ for shape in (*document.request_shapes(), *document.reply_shapes())}


def test_codes_limits_and_sections_that_the_prose_names_exist() -> None:
    known = {*CODES, *CATALOGUE, *vars(limits), *(kind.value for kind in Kind)}
    known |= {field.encode_name for shape in document.request_shapes() for field in document.fields_of(shape)}
    known |= {field.encode_name for shape in document.reply_shapes() for field in document.fields_of(shape)}
    prose = re.sub(r"<!-- generated.*?<!-- end: [\w ]+ -->", "", TEXT, flags=re.DOTALL)
    named = set(re.findall(r"`([a-z]+_[a-z_]+|[A-Z]+_[A-Z_]+|[a-z]+\.[a-z]+)`", prose))
    assert named - known - {"deadline_ms", "_bytes", "_ms", "_at_ms", "h2qd.sock"} == set()
    sections = set(re.findall(r"^## (\d+)\. ", TEXT, re.MULTILINE))
    assert {
        number for one in re.findall(r"sections? (\d+)(?: to (\d+))?", prose) for number in one if number
    } <= sections


def test_links_lead_to_headings() -> None:
    anchors = {heading.lower() for heading in re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors


def test_the_dissected_bytes_are_what_the_encoder_writes() -> None:
    part = TEXT.split("## 13.")[1].split("<!-- generated")[0]
    tables = [
        re.findall(r"^\| ((?:`[0-9a-f ]+` ?)+)\|", table, re.MULTILINE) for table in part.split("| bytes | meaning |")
    ]
    request, reply = ["".join(re.findall("[0-9a-f]{2}", "".join(rows))) for rows in tables[1:]]
    assert request == request_frames(Request(1, 1, "daemon.status"))[0].hex()
    assert reply == response_frames(1, Kind.REPLY, m.Cancelled("r1"))[0].hex()


def _frames_in_the_example() -> Iterator[tuple[str, list[bytes]]]:
    example = TEXT.split("<!-- generated: example -->")[1]
    for message in example.split("```")[1].removeprefix("text\n").strip().split("\n\n"):
        speaker, *lines = message.splitlines()
        frames: list[bytes] = []
        for line in lines:
            if line.startswith("    "):
                frames[-1] += bytes.fromhex(line)
            else:
                frames.append(b"")
        yield speaker.partition(":")[0], frames


def test_the_example_is_a_conversation_that_keeps_the_rules() -> None:
    """Read back from the document's bytes: one end for each request, chunks only by credit, and the text complete."""
    op: dict[int, str] = {}
    credit: dict[int, int] = {}
    ended: set[int] = set()
    kinds = set()
    for speaker, frames in _frames_in_the_example():
        if speaker == "client":
            request, raw = split_request(frames)
            command = CATALOGUE[request.op]
            asked = decode_body(raw, command.request, command.bytes_max)
            if isinstance(asked, m.Credit):
                credit[asked.id] += asked.chunks
                continue
            assert request.id not in op
            op[request.id] = request.op
            if isinstance(asked, m.Infer):
                credit[request.id] = asked.window
            continue
        response, raw = split_response(frames)
        kinds.add(response.kind)
        assert response.id in op
        assert response.id not in ended
        if response.kind is Kind.CHUNK:
            credit[response.id] -= 1
            assert credit[response.id] >= 0
            decode_body(raw, m.Delta, 1024)
        if response.kind in {Kind.REPLY, Kind.ERROR}:
            ended.add(response.id)
            shape = CATALOGUE[op[response.id]].reply if response.kind is Kind.REPLY else m.ErrorReply
            assert shape is not None
            decode_body(raw, shape, 1024)
    assert ended == set(op)
    assert kinds == set(Kind)


class Sample(msgspec.Struct):
    """A shape.

    In two parts.
    """

    loose: int
    above: dict[str, float] = {}


def test_words_and_tables_of_a_shape() -> None:
    assert document.words(Sample) == "A shape.\n\nIn two parts."
    assert document.fields_table(Sample).splitlines()[2:] == [
        "| `loose` | int | required |",
        "| `above` | map from str to float | `{}` |",
    ]


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        (msgspec.Meta(gt=0, lt=2), "int (0, 2)"),
        (msgspec.Meta(ge=-3), "int [-3, inf)"),
        (msgspec.Meta(le=2**53 - 1), "int (-inf, 2^53-1]"),
        (msgspec.Meta(le=2**32 - 2), "int (-inf, 2^32-2]"),
    ],
)
def test_ranges_in_words(bounds: msgspec.Meta, text: str) -> None:
    assert document.type_text(types.type_info(Annotated[int, bounds])) == text


@pytest.mark.parametrize("vague", [Any, object, dict, bytearray])
def test_a_type_that_says_nothing_cannot_be_documented(vague: Any) -> None:
    with pytest.raises(TypeError, match="cannot document"):
        document.type_text(types.type_info(vague))


def test_only_structs_have_fields() -> None:
    with pytest.raises(TypeError, match="no struct"):
        document.fields_of(int)  # type: ignore[arg-type]  # what the check is for
