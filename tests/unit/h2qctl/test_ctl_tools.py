"""Tools from files and mappings, the turns around calls, and the options of chat beyond text."""

import argparse
import base64
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from h2qctl import abilities, asks, tools
from h2qctl.errors import H2qError
from h2qd.wire import messages as m
from h2qd.wire.limits import IMAGE_BYTES_MAX, IMAGES_MAX

PNG = b"\x89PNG\r\n\x1a\n...."
BARE = {"name": "rain", "description": "Whether it rains", "parameters": {"type": "object", "properties": {}}}
RAIN = m.Tool("rain", "Whether it rains", '{"type":"object","properties":{}}')
CALL = m.ToolCall("a", "rain", '{"in":"Rome"}')
ANSWER = m.Answer(
    "r1", "a", "well", "tool_calls", m.Usage(1, 1), m.Timings(0, 0, 0, 0, 0, 0), 1, thinking="hm", tool_calls=[CALL]
)


@pytest.mark.parametrize(
    "found",
    [
        RAIN,
        BARE,
        {"type": "function", "function": BARE},
        {"function": {**BARE, "strict": False}},
        {**BARE, "parameters": '{"type":"object","properties":{}}'},
    ],
)
def test_a_tool_in_any_of_its_forms(found: object) -> None:
    assert tools.definition(found) == RAIN


def test_parameters_may_be_absent() -> None:
    assert (
        tools.definition({"name": "stop"}) == tools.definition({"name": "stop", "parameters": None}) == m.Tool("stop")
    )


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"name": "rain"}, "no list of tools"),
        ([BARE, 7], "tool 2: it is no object"),
        ([{}], "tool 1: Object missing required field `name`"),
        ([{"name": "two words"}], "tool 1: Expected `str` matching regex"),
        ([{"name": "rain", "arguments": {}}], "tool 1: Object contains unknown field `arguments`"),
        ([{"type": "web_search", "function": BARE}], "only `type` may stand, and be function"),
        ([{"function": "rain"}], "only `type` may stand"),
        ([{**BARE, "strict": True}], "`strict` cannot be promised"),
        ([{**BARE, "parameters": [1]}], "tool 1: Expected `str`, got `array` - at `$.parameters`"),
    ],
)
def test_what_is_no_tool_is_told_by_its_place(found: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        tools.definitions(found)
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(found))
    with pytest.raises(H2qError) as told:
        tools.read(str(path))
    assert told.value.code == "invalid_request"
    assert words in told.value.message


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 5000])
def test_a_file_that_is_no_json(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    path.write_bytes(data)
    with pytest.raises(H2qError, match="cannot take the tools"):
        tools.read(str(path))
    with pytest.raises(H2qError, match="cannot read"):
        tools.read(str(tmp_path / "absent.json"))


def test_turns_after_an_answer() -> None:
    assert tools.answered(ANSWER) == m.ChatMessage(
        "assistant", "well", tool_calls=[m.PastCall("a", "rain", '{"in":"Rome"}')]
    )
    assert tools.outcome(CALL, "no") == m.ChatMessage("tool", "no", tool_call_id="a", name="rain")


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        {"id": "a", "name": "rain", "arguments": '{"in":"Rome"}'},
        {"id": "a", "name": "rain", "arguments": {"in": "Rome"}},
        {"id": "a", "type": "function", "function": {"name": "rain", "arguments": '{"in":"Rome"}'}},
    ],
)
def test_messages_as_mappings(call: Any) -> None:
    body = asks.chat(
        [
            {"role": "user", "content": "see", "images": [PNG, base64.b64encode(PNG).decode()]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ],
        None,
        {"tools": [BARE], "think": False, "tool_choice": None},
        stream=False,
    )
    assert body.messages == [
        m.ChatMessage("user", "see", images=[PNG, PNG]),
        m.ChatMessage("assistant", "", tool_calls=[m.PastCall("a", "rain", '{"in":"Rome"}')]),
    ]
    assert (body.tools, body.tool_choice, body.think) == ([RAIN], "auto", False)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(body), type=m.Chat) == body


def test_an_image_that_is_no_base64() -> None:
    with pytest.raises(ValueError, match="base64"):
        tools.turn({"role": "user", "content": "", "images": ["no!"]})


def test_a_call_on_one_line() -> None:
    assert tools.written(m.ToolCall("a", "rain", '{\n "in": "Rome"\n}')) == 'a rain({"in":"Rome"})'
    assert tools.written(m.ToolCall("a", "rain", '{"in":')) == 'a rain({"in":)'


# --- options --------------------------------------------------------------------------------------------


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    abilities.arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("words", "think"), [([], None), (["--think"], True), (["--think=low"], "low"), (["--no-think"], False)]
)
def test_how_much_to_think(words: list[str], think: object) -> None:
    assert parsed(*words).think == think


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--think", "gemma3"], "cannot think 'gemma3'"), (["--tool-result", "call_1"], "cannot read 'call_1'")],
)
def test_options_that_cannot_be_meant(words: list[str], said: str) -> None:
    with pytest.raises(argparse.ArgumentError, match=said):
        parsed(*words)


def test_results_of_calls() -> None:
    assert parsed("--tool-result", "a=x=y").tool_result == [("a", "x=y")]


def test_images_are_checked_before_they_are_sent(tmp_path: Path) -> None:
    def file(name: str, data: bytes) -> str:
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    good, large = file("good", PNG), file("large", PNG + bytes(IMAGE_BYTES_MAX))
    half = file("half", PNG + bytes(IMAGE_BYTES_MAX // 2))
    assert abilities.images([good, good]) == [PNG, PNG]
    for paths, code, words in (
        ([large], "too_large", f"IMAGE_BYTES_MAX ({IMAGE_BYTES_MAX})"),
        ([good] * (IMAGES_MAX + 1), "too_large", f"IMAGES_MAX ({IMAGES_MAX})"),
        ([half] * 3, "too_large", "PROMPT_BYTES_MAX"),
        ([file("page", b"<html>")], "invalid_request", "no PNG, JPEG, GIF or WebP"),
        ([str(tmp_path / "absent")], "invalid_request", "cannot read"),
    ):
        with pytest.raises(H2qError) as raised:
            abilities.images(paths)
        assert raised.value.code == code
        assert words in raised.value.message
