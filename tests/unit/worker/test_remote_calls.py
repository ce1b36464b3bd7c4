"""Tool calls put together from what servers say, and conversations in the words of the two APIs."""

import base64
import json
from itertools import pairwise, zip_longest

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from h2qd.wire.limits import TOOL_ARGUMENTS_CHARS_MAX, TOOL_CALLS_MAX
from h2qd.wire.workers import Generate, Generated, Sampler, Text, Tool, ToolCall, Turn
from h2qd.worker.engine import EngineError, Said
from h2qd.worker.remote import turns
from h2qd.worker.remote.calls import Calls
from h2qd.worker.remote.errors import RemoteError
from h2qd.worker.remote.reply import Reply

Piece = tuple[int | None, str, str, str]
PNG = b"\x89PNG\r\n\x1a\n...."


def told(*pieces: Piece, cut: bool = False) -> list[tuple[str, str, str]]:
    calls = Calls()
    for piece in pieces:
        calls.piece(*piece)
    return [(call.id, call.name, call.arguments) for call in calls.ended(cut=cut)]


@given(st.lists(st.integers(0, 200), max_size=6), st.booleans())
def test_arguments_cut_anywhere_are_put_together(places: list[int], mixed: bool) -> None:
    whole = {0: '{"in": "Rome", "größe": [1, 2, {"x": "\\u0041"}]}', 1: '{"in": "Oslo"}', 2: "{}"}
    pieces: list[Piece] = []
    for index, text in whole.items():
        ends = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
        pieces += [(index, "", "", text[start:end]) for start, end in pairwise(ends)]
    if mixed:  # the calls in turns, each still in its own order
        taken = {index: iter([piece for piece in pieces if piece[0] == index]) for index in whole}
        pieces = [piece for turn in zip_longest(*taken.values()) for piece in turn if piece is not None]
    heads: list[Piece] = [(index, f"id{index}", f"tool{index}", "") for index in whole]
    assert told(*heads, *pieces) == [(f"id{index}", f"tool{index}", text) for index, text in whole.items()]


def test_servers_without_indices() -> None:
    assert told((None, "a", "rain", '{"in"'), (None, "", "", ":1}"), (None, "b", "rain", "{}")) == [
        ("a", "rain", '{"in":1}'),
        ("b", "rain", "{}"),
    ]


def test_servers_that_give_every_call_the_same_index() -> None:
    assert told((0, "a", "rain", "{}"), (0, "b", "snow", '{"x"'), (0, "b", "snow", ":1}")) == [
        ("a", "rain", "{}"),
        ("b", "snow", '{"x":1}'),
    ]


def test_ids_that_lack_or_come_twice_are_made_up() -> None:
    assert [call[0] for call in told((0, "", "t", ""), (1, "x", "t", ""), (2, "x", "t", ""))] == [
        "call_1",
        "x",
        "call_3",
    ]


def test_an_id_that_is_made_up_is_nobody_elses() -> None:
    ids = [call[0] for call in told((0, "call_3", "t", ""), (1, "b", "t", ""), (2, "", "t", ""))]
    assert len(set(ids)) == 3


def test_no_arguments_are_an_empty_object() -> None:
    assert told((0, "a", "t", " ")) == [("a", "t", "{}")]


@pytest.mark.parametrize("arguments", ["{", "no", "[1]", '"text"', "null", "{}{}", "[" * 5000])
def test_arguments_that_are_no_object(arguments: str) -> None:
    with pytest.raises(RemoteError, match="calls rain with arguments that are no JSON object") as caught:
        told((0, "a", "rain", arguments))
    assert caught.value.code == "generation_failed"
    assert told((0, "a", "rain", "{}"), (1, "b", "rain", arguments), cut=True) == [("a", "rain", "{}")]


def test_a_call_without_a_name() -> None:
    with pytest.raises(RemoteError, match="without a name") as caught:
        told((0, "a", "", "{}"))
    assert caught.value.code == "remote_failed"


@pytest.mark.parametrize(
    "pieces",
    [
        [(n, "", "t", "") for n in range(TOOL_CALLS_MAX + 1)],
        [(0, "", "t", "x" * TOOL_ARGUMENTS_CHARS_MAX), (1, "", "t", "x")],
        [(0, "i" * 129, "t", "")],
        [(0, "", "t" * 129, "")],
    ],
)
def test_more_than_the_bounds_is_given_up_at_once(pieces: list[Piece]) -> None:
    with pytest.raises(RemoteError) as caught:
        told(*pieces)
    assert caught.value.code == "remote_failed"


# --- in an answer ---------------------------------------------------------------------------------------


def reply(**fields: object) -> tuple[Reply, list[Said]]:
    said: list[Said] = []
    order = Generate(1, 100, Sampler(), turns=[], **fields)  # type: ignore[arg-type]
    return Reply(order, said.append), said


@pytest.mark.parametrize(
    ("finish", "in_the_end", "calls"),
    [
        ("stop", "tool_calls", 1),
        ("length", "length", 1),
        ("stop_string", "stop_string", 1),
        ("cancelled", "cancelled", 0),
    ],
)
def test_how_an_answer_with_a_call_ends(finish: str, in_the_end: str, calls: int) -> None:
    made, said = reply()
    made.call(0, "a", "rain", "{}")
    ended = made.end(finish)
    assert (ended.finish, len(ended.tool_calls)) == (in_the_end, calls)
    assert said == [], "a call is told at the end"


def test_thoughts_are_told_beside_the_text_and_count() -> None:
    made, said = reply()
    made.text("", [], "hm")
    made.text("yes", [], "")
    assert said == [Text(1, "", 1, [], "hm"), Text(1, "yes", 1, [], "")]
    assert made.end("stop").completion_tokens == 2
    with pytest.raises(RemoteError):
        made.text("", [], "x" * 60_000)
    with pytest.raises(RemoteError):
        made.call(0, "a", "t", "x" * 60_000)


def test_ends_without_calls() -> None:
    made, _ = reply()
    ended = made.end("stop")
    assert isinstance(ended, Generated)
    assert (ended.finish, ended.tool_calls) == ("stop", [])


# --- what is asked --------------------------------------------------------------------------------------

TURNS = [
    Turn("user", "see", images=[PNG, b"\xff\xd8\xff\xe0"]),
    Turn("user", "", images=[PNG]),
    Turn("assistant", "", tool_calls=[ToolCall("a", "rain", '{"in":"Rome"}')]),
    Turn("assistant", "well", tool_calls=[ToolCall("b", "rain", "{}")]),
    Turn("tool", "no", tool_call_id="a", name="rain"),
]


def encoded(messages: object) -> object:
    return json.loads(msgspec.json.encode(messages))


def test_messages_for_ollama() -> None:
    png, jpeg = base64.b64encode(PNG).decode(), base64.b64encode(b"\xff\xd8\xff\xe0").decode()
    assert encoded(turns.for_ollama(TURNS)) == [
        {"role": "user", "content": "see", "images": [png, jpeg]},
        {"role": "user", "content": "", "images": [png]},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "a", "function": {"name": "rain", "arguments": {"in": "Rome"}}}],
        },
        {
            "role": "assistant",
            "content": "well",
            "tool_calls": [{"id": "b", "function": {"name": "rain", "arguments": {}}}],
        },
        {"role": "tool", "content": "no", "tool_name": "rain", "tool_call_id": "a"},
    ]


def test_messages_for_openai() -> None:
    def image(kind: str, data: bytes) -> dict[str, object]:
        url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        return {"type": "image_url", "image_url": {"url": url}}

    def call(number: str, arguments: str) -> dict[str, object]:
        return {"id": number, "type": "function", "function": {"name": "rain", "arguments": arguments}}

    assert encoded(turns.for_openai(TURNS)) == [
        {
            "role": "user",
            "content": [{"type": "text", "text": "see"}, image("png", PNG), image("jpeg", b"\xff\xd8\xff\xe0")],
        },
        {"role": "user", "content": [image("png", PNG)]},
        {"role": "assistant", "content": None, "tool_calls": [call("a", '{"in":"Rome"}')]},
        {"role": "assistant", "content": "well", "tool_calls": [call("b", "{}")]},
        {"role": "tool", "content": "no", "tool_call_id": "a"},
    ]


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("auto", None),
        ("none", "none"),
        ("required", "required"),
        ("rain", {"type": "function", "function": {"name": "rain"}}),
    ],
)
def test_choices_for_openai(choice: str, sent: object) -> None:
    order = Generate(
        1, 4, Sampler(), turns=[], tools=[Tool("rain", "Is it?", '{"type":"object"}')], tool_choice=choice
    )
    fields = turns.beyond_text(order)
    assert fields.get("tool_choice") == sent
    function = {"name": "rain", "description": "Is it?", "parameters": {"type": "object"}}
    assert encoded(fields["tools"]) == [{"type": "function", "function": function}]


@pytest.mark.parametrize(("think", "effort"), [(None, None), (False, "none"), (True, "medium"), ("high", "high")])
def test_efforts(think: object, effort: str | None) -> None:
    order = Generate(1, 4, Sampler(), turns=[], think=think)  # type: ignore[arg-type]
    assert turns.beyond_text(order).get("reasoning_effort") == effort


@pytest.mark.parametrize("text", ["", "[]", "{", "NaN", '{"a": NaN}', "[" * 5000])
def test_what_is_no_json_object_is_refused_before_it_is_sent(text: str) -> None:
    for order in (
        Generate(1, 4, Sampler(), turns=[], tools=[Tool("rain", "", text)]),
        Generate(1, 4, Sampler(), turns=[Turn("assistant", "", tool_calls=[ToolCall("a", "rain", text)])]),
    ):
        with pytest.raises(EngineError, match="rain: it is no JSON object") as caught:
            turns.check(order)
        assert caught.value.code == "invalid_request"
