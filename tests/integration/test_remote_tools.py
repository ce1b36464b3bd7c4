"""Tools, images and thinking with both kinds of servers, as the worker's loop sees them."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from h2qd.wire.limits import TOOL_CALLS_MAX
from h2qd.wire.workers import Generated, Sampler, Text, Tool, ToolCall, Turn
from h2qd.worker.engine import EngineError
from tests.peers.desk import Desk, chat
from tests.peers.http_server import Request, Response
from tests.peers.ollama_server import Model, OllamaServer
from tests.peers.openai_server import OpenAIServer

PNG = b"\x89PNG\r\n\x1a\n...."
RAIN = Tool("rain", "Whether it rains somewhere", '{"type": "object", "properties": {"in": {"type": "string"}}}')
ROME, OSLO = ToolCall("a", "rain", '{"in":"Rome"}'), ToolCall("b", "rain", '{"in":"Oslo"}')
DESCRIBED = {
    "type": "function",
    "function": {
        "name": "rain",
        "description": "Whether it rains somewhere",
        "parameters": {"type": "object", "properties": {"in": {"type": "string"}}},
    },
}


@pytest.fixture
def desk() -> Iterator[Desk]:
    with Desk() as at:
        yield at


@pytest.fixture
def openai(desk: Desk) -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        desk.load("openai", server.url)
        yield server


def able() -> OllamaServer:
    return OllamaServer(Model("small:latest", capabilities=["completion", "tools", "thinking", "vision"]))


@pytest.fixture
def ollama(desk: Desk) -> Iterator[OllamaServer]:
    with able() as server:
        desk.load("ollama", server.url)
        yield server


@pytest.fixture
def pair() -> Iterator[tuple[OpenAIServer, OllamaServer]]:
    """Both kinds, not spoken to yet."""
    with OpenAIServer() as openai, able() as ollama:
        yield openai, ollama


def piece(index: int | None = None, call_id: str | None = None, name: str | None = None, arguments: str = "") -> Any:
    said: dict[str, Any] = {"function": {"arguments": arguments, **({"name": name} if name is not None else {})}}
    said |= {"index": index} if index is not None else {}
    return said | ({"id": call_id, "type": "function"} if call_id is not None else {})


def whole(call_id: str, name: str, arguments: object) -> Any:
    return {"id": call_id, "function": {"index": 0, "name": name, "arguments": arguments}}


def ended(desk: Desk, **fields: Any) -> tuple[str, Generated]:
    text, last = desk.ask(chat(tools=[RAIN], **fields))
    assert isinstance(last, Generated), last
    return text, last


# --- calls ----------------------------------------------------------------------------------------------


def test_calls_in_pieces_of_openais_api(openai: OpenAIServer, desk: Desk) -> None:
    openai.calls = [
        piece(0, "a", "rain"),
        piece(0, arguments='{"in":'),
        piece(0, arguments='"Rome"}'),
        piece(1, "b", "rain"),
        *(piece(1, arguments=letter) for letter in OSLO.arguments),
    ]
    text, last = ended(desk)
    assert (text, last.finish, last.tool_calls) == ("", "tool_calls", [ROME, OSLO])
    asked = openai.requests[-1].json
    assert asked["tools"] == [DESCRIBED]
    assert "tool_choice" not in asked


def test_whole_calls_of_ollama(ollama: OllamaServer, desk: Desk) -> None:
    ollama.calls = [whole("a", "rain", {"in": "Rome"}), whole("b", "rain", {"in": "Oslo"})]
    text, last = ended(desk)
    assert (text, last.finish, last.tool_calls) == ("", "tool_calls", [ROME, OSLO])
    assert ollama.asked("/api/chat")[-1].json["tools"] == [DESCRIBED]


def test_what_came_of_a_call_goes_on(pair: tuple[OpenAIServer, OllamaServer]) -> None:
    openai, ollama = pair
    turns = [
        Turn("user", "Is it raining?"),
        Turn("assistant", "", tool_calls=[ROME]),
        Turn("tool", "no", tool_call_id="a", name="rain"),
    ]
    openai.calls, ollama.calls = [piece(0, "a", "rain", "{}")], [whole("a", "rain", {})]
    for kind, url in (("openai", openai.url), ("ollama", ollama.url)):
        with Desk() as desk:
            desk.load(kind, url)
            text, last = ended(desk, turns=turns)
        assert (text, last.finish) == ("tok0 tok1 tok2 tok3 ", "stop")
    assert openai.requests[-1].json["messages"][1:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "rain", "arguments": '{"in":"Rome"}'}}
            ],
        },
        {"role": "tool", "content": "no", "tool_call_id": "a"},
    ]
    assert ollama.asked("/api/chat")[-1].json["messages"][1:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "a", "function": {"name": "rain", "arguments": {"in": "Rome"}}}],
        },
        {"role": "tool", "content": "no", "tool_name": "rain", "tool_call_id": "a"},
    ]


@pytest.mark.parametrize(
    ("calls", "code", "words"),
    [
        ([piece(0, "a", "rain", '{"in":')], "generation_failed", "calls rain with arguments that are no JSON object"),
        ([piece(0, "a", "rain", "[1]")], "generation_failed", "arguments that are no JSON object"),
        ([piece(0, "a", None, "{}")], "remote_failed", "without a name"),
        ([piece(n, f"c{n}", "t", "{}") for n in range(TOOL_CALLS_MAX + 1)], "remote_failed", "more than 64 tools"),
        ([piece(0, "a", "t" * 200, "{}")], "remote_failed", "longer than 128"),
        (
            [piece(0, "a", "t"), *[piece(0, arguments="x" * 30_000)] * 2],
            "remote_failed",
            "more than it was asked for",
        ),
        ([piece(-1, "a", "t")], "remote_failed", "not the API's"),
    ],
)
def test_calls_of_openais_api_that_make_no_sense(
    openai: OpenAIServer, desk: Desk, calls: list[Any], code: str, words: str
) -> None:
    openai.calls = calls
    failed = desk.fails(chat(tools=[RAIN]))
    assert failed.code == code
    assert words in failed.message


@pytest.mark.parametrize(
    ("calls", "code", "words"),
    [
        ([whole("a", "rain", "text")], "generation_failed", "arguments that are no JSON object"),
        ([whole("a", "rain", {}), whole("b", "", {})], "remote_failed", "without a name"),
        ([whole("", "t", {})] * (TOOL_CALLS_MAX + 1), "remote_failed", "more than 64 tools"),
    ],
)
def test_calls_of_ollama_that_make_no_sense(
    ollama: OllamaServer, desk: Desk, calls: list[Any], code: str, words: str
) -> None:
    ollama.calls = calls
    failed = desk.fails(chat(tools=[RAIN]))
    assert failed.code == code
    assert words in failed.message


def test_a_call_that_the_length_cut_is_left_out(openai: OpenAIServer, desk: Desk) -> None:
    async def cut(_: Request, response: Response) -> None:
        await response.begin("text/event-stream")
        for delta, finish in (
            (piece(0, "a", "rain", ROME.arguments), None),
            (piece(1, "b", "rain", '{"in'), "length"),
        ):
            choice = {"index": 0, "delta": {"tool_calls": [delta]}, "finish_reason": finish}
            await openai_event(response, {"choices": [choice]})
        await response.end()

    openai.fail("/v1/chat/completions", cut)
    _, last = ended(desk)
    assert (last.finish, last.tool_calls) == ("length", [ROME])


async def openai_event(response: Response, event: object) -> None:
    await response.chunk(b"data: " + json.dumps(event).encode() + b"\n\n")


def test_bytes_cut_anywhere(openai: OpenAIServer, desk: Desk) -> None:
    """The same answer whatever pieces the stream of bytes comes in."""
    deltas = [
        {"reasoning": "hm, größe "},
        {"tool_calls": [piece(0, "a", "rain", '{"in":"R')]},
        {"tool_calls": [piece(0, arguments='ome"}')]},
    ]
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": "tool_calls"})
    data = b"".join(
        b"data: " + json.dumps({"choices": [choice]}, ensure_ascii=False).encode() + b"\n\n" for choice in choices
    )

    async def drip(_: Request, response: Response) -> None:
        await response.begin("text/event-stream")
        for at in range(0, len(data), 7):
            await response.chunk(data[at : at + 7])
        await response.end()

    openai.fail("/v1/chat/completions", drip)
    said = desk.run(chat(tools=[RAIN]))[1]
    assert "".join(one.thinking for one in said if isinstance(one, Text)) == "hm, größe "
    assert isinstance(said[-1], Generated)
    assert said[-1].tool_calls == [ROME]


# --- choices --------------------------------------------------------------------------------------------


def test_a_choice_of_tools(openai: OpenAIServer, desk: Desk) -> None:
    for choice, sent in (
        ("required", "required"),
        ("none", "none"),
        ("rain", {"type": "function", "function": {"name": "rain"}}),
    ):
        desk.ask(chat(tools=[RAIN], tool_choice=choice))
        assert openai.requests[-1].json["tool_choice"] == sent


def test_ollama_lets_no_tool_be_chosen_but_none(ollama: OllamaServer, desk: Desk) -> None:
    ollama.calls = [whole("a", "rain", {})]
    text, last = ended(desk, tool_choice="none")
    assert (text, last.finish) == ("tok0 tok1 tok2 tok3 ", "stop")
    assert "tools" not in ollama.asked("/api/chat")[-1].json
    for choice in ("required", "rain"):
        with pytest.raises(EngineError) as caught:
            desk.engine.submit(chat(tools=[RAIN], tool_choice=choice))
        assert caught.value.code == "unsupported"


def test_a_model_without_tools_says_so(desk: Desk) -> None:
    with OllamaServer(Model("small:latest")) as server:
        desk.load("ollama", server.url)
        failed = desk.fails(chat(tools=[RAIN]))
        assert (failed.code, "does not support tools" in failed.message) == ("remote_failed", True)
        failed = desk.fails(chat(think=True))
        assert (failed.code, "does not support thinking" in failed.message) == ("remote_failed", True)


def test_schemas_are_read_before_they_are_sent(openai: OpenAIServer, desk: Desk) -> None:
    asked = len(openai.requests)
    with pytest.raises(EngineError, match="the parameters of the tool rain: it is no JSON object") as caught:
        desk.engine.submit(chat(tools=[Tool("rain", "", "[]")]))
    assert caught.value.code == "invalid_request"
    assert len(openai.requests) == asked


# --- images ---------------------------------------------------------------------------------------------


def test_images_go_as_each_api_has_them(pair: tuple[OpenAIServer, OllamaServer]) -> None:
    openai, ollama = pair
    turns = [Turn("user", "What is it?", images=[PNG])]
    text = base64.b64encode(PNG).decode()
    for kind, url in (("openai", openai.url), ("ollama", ollama.url)):
        with Desk() as desk:
            desk.load(kind, url)
            desk.ask(chat(turns=turns))
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}}
    assert openai.requests[-1].json["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}, part]}
    ]
    assert ollama.asked("/api/chat")[-1].json["messages"] == [
        {"role": "user", "content": "What is it?", "images": [text]}
    ]


# --- thinking -------------------------------------------------------------------------------------------


def thoughts(desk: Desk, **fields: Any) -> tuple[str, str, bool]:
    """What was thought and what was said, and whether all of the one came before the other."""
    said = [one for one in desk.run(chat(**fields))[1] if isinstance(one, Text)]
    first = next((n for n, one in enumerate(said) if one.text), len(said))
    early = not any(one.thinking for one in said[first + 1 :])
    return "".join(one.thinking for one in said), "".join(one.text for one in said), early


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thoughts_of_openais_api_come_before_the_text(openai: OpenAIServer, desk: Desk, field: str) -> None:
    openai.thoughts, openai.thinks_in = ["let me ", "see"], field
    assert thoughts(desk) == ("let me see", "tok0 tok1 tok2 tok3 ", True)
    assert "reasoning_effort" not in openai.requests[-1].json
    thoughts(desk, think="high")
    assert openai.requests[-1].json["reasoning_effort"] == "high"
    thoughts(desk, think=False)
    assert openai.requests[-1].json["reasoning_effort"] == "none"


def test_thoughts_of_ollama_come_before_the_text(ollama: OllamaServer, desk: Desk) -> None:
    ollama.thoughts = ["let me ", "see"]
    assert thoughts(desk) == ("let me see", "tok0 tok1 tok2 tok3 ", True)
    assert thoughts(desk, think="low")[0] == "let me see"
    assert ollama.asked("/api/chat")[-1].json["think"] == "low"
    assert thoughts(desk, think=False)[0] == ""
    assert ollama.asked("/api/chat")[-1].json["think"] is False


def test_thoughts_have_no_log_probabilities_of_the_text(openai: OpenAIServer, desk: Desk) -> None:
    openai.thoughts = ["hm"]
    said = [one for one in desk.run(chat(logprobs=0, sampler=Sampler()))[1] if isinstance(one, Text)]
    assert sum(len(one.logprobs) for one in said) == len(openai.words)
