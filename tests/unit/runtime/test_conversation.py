"""Messages as turns: what may stand where, and which call a tool's turn answers."""

from typing import Any

import pytest

from h2qd.runtime import orders, swarm
from h2qd.runtime.refusal import Refusal
from h2qd.wire import messages as m
from h2qd.wire.limits import IMAGES_MAX
from h2qd.wire.workers import Generate, Tool, ToolCall, Turn

PNG = b"\x89PNG\r\n\x1a\n...."
USER = m.ChatMessage("user", "Is it raining?")
ROME, OSLO = m.PastCall("a", "rain", '{"in":"Rome"}'), m.PastCall("b", "rain", '{"in":"Oslo"}')
CALLS = m.ChatMessage("assistant", "", tool_calls=[ROME, OSLO])
RAIN = m.Tool("rain")


def ordered(*messages: m.ChatMessage, **fields: Any) -> Generate:
    order = orders.chat(1, 1000, m.Chat(messages=[USER, *messages], **fields))
    assert isinstance(order, Generate)
    return order


def refused(*messages: m.ChatMessage, **fields: Any) -> tuple[str, str]:
    with pytest.raises(Refusal) as caught:
        ordered(*messages, **fields)
    return caught.value.fault.code, caught.value.fault.message


def outcomes(*messages: m.ChatMessage) -> list[tuple[str, str]]:
    return [(turn.tool_call_id, turn.name) for turn in ordered(*messages).turns or [] if turn.role == "tool"]


def test_all_of_it_reaches_the_worker() -> None:
    order = ordered(CALLS, m.ChatMessage("user", "see", images=[PNG]), tools=[RAIN], tool_choice="rain", think="low")
    assert order.turns == [
        Turn("user", "Is it raining?"),
        Turn("assistant", "", tool_calls=[ToolCall(one.id, one.name, one.arguments) for one in (ROME, OSLO)]),
        Turn("user", "see", images=[PNG]),
    ]
    assert order.tools == [Tool("rain", "", '{"type":"object","properties":{}}')]
    assert (order.tool_choice, order.think) == ("rain", "low")


def tool(tool_call_id: str = "", name: str = "") -> m.ChatMessage:
    return m.ChatMessage("tool", "no", tool_call_id=tool_call_id, name=name)


def test_an_outcome_is_known_by_its_id_or_by_its_tool() -> None:
    assert outcomes(CALLS, tool(tool_call_id="b"), tool(tool_call_id="a")) == [("b", "rain"), ("a", "rain")]
    assert outcomes(CALLS, tool(name="rain"), tool(name="rain")) == [("a", "rain"), ("b", "rain")]
    assert outcomes(CALLS, tool(tool_call_id="b"), tool(name="rain")) == [("b", "rain"), ("a", "rain")]


def test_an_outcome_of_no_known_call_stays_as_it_is() -> None:
    assert outcomes(tool(tool_call_id="z")) == [("z", "")]
    assert outcomes(CALLS, tool(name="snow"), tool()) == [("", "snow"), ("", "")]
    later = m.ChatMessage("assistant", "", tool_calls=[m.PastCall("c", "snow", "{}")])
    assert outcomes(CALLS, later, tool(name="rain")) == [("", "rain")], "calls are answered before the next ones"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (m.ChatMessage("system", "", images=[PNG]), "images in a turn of the role system"),
        (m.ChatMessage("user", "", images=[b"<svg/>"]), "no PNG, JPEG, GIF or WebP"),
        (m.ChatMessage("user", "", tool_calls=[ROME]), "tool_calls in a turn of the role user"),
        (m.ChatMessage("assistant", "", tool_call_id="a"), "tool_call_id or name in a turn of the role assistant"),
        (m.ChatMessage("user", "", name="rain"), "tool_call_id or name in a turn of the role user"),
    ],
)
def test_what_stands_in_the_wrong_turn_is_refused(message: m.ChatMessage, words: str) -> None:
    code, text = refused(message)
    assert code == "invalid_request"
    assert words in text


def test_too_many_images_are_refused_by_the_name_of_the_limit() -> None:
    half = m.ChatMessage("user", "", images=[PNG] * (IMAGES_MAX // 2))
    assert len(ordered(half, half).turns or []) == 3
    assert "IMAGES_MAX (16)" in refused(half, half, m.ChatMessage("user", "", images=[PNG]))[1]


def test_a_session_keeps_no_images() -> None:
    assert refused(m.ChatMessage("user", "", images=[PNG]), session="trip")[0] == "unsupported"


@pytest.mark.parametrize(
    ("tools", "choice", "words"),
    [
        ([RAIN, RAIN], "auto", "the tool rain"),
        ([m.Tool("none")], "auto", "the tool none"),
        ([RAIN], "snow", "the tool_choice snow"),
        ([], "required", "the tool_choice required"),
    ],
)
def test_tools_that_cannot_be_meant_are_refused(tools: list[m.Tool], choice: str, words: str) -> None:
    code, text = refused(tools=tools, tool_choice=choice)
    assert code == "invalid_request"
    assert words in text


@pytest.mark.parametrize("choice", ["auto", "none", "required", "rain"])
def test_choices(choice: str) -> None:
    assert ordered(tools=[RAIN], tool_choice=choice).tool_choice == choice


def test_a_judge_is_not_asked_about_what_it_cannot_read() -> None:
    for message in (m.ChatMessage("user", "", images=[PNG]), CALLS):
        ask = m.Swarm(models=["a", "b"], messages=[message], method="judge", judge="a")
        with pytest.raises(Refusal):
            swarm.checked(ask)
    swarm.checked(m.Swarm(models=["a"], messages=[CALLS]))
