"""Tools, images and thinking through the daemon: a round trip by library and by tool; and who refuses what."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from h2qctl import Client, H2qError
from h2qctl.tools import answered, outcome
from h2qd.wire import messages as m
from tests.harness import DaemonProcess, await_true, config_text, script, started
from tests.integration.terminal import ENVIRONMENT, tool
from tests.peers.ollama_server import MIB, Model, OllamaServer
from tests.peers.openai_server import OpenAIServer

PNG = b"\x89PNG\r\n\x1a\n...."
QUESTION = m.ChatMessage("user", "Is it raining in Rome?")
RAIN = {"name": "rain", "description": "Whether it rains", "parameters": {"type": "object", "properties": {}}}
LAB, BOX = "lab/large", "box/small:latest"


@pytest.fixture(scope="module")
def ollama() -> Iterator[OllamaServer]:
    able = ["completion", "tools", "thinking", "vision"]
    with OllamaServer(Model("small:latest", size=40 * MIB, capabilities=able)) as peer:
        peer.thoughts = ["let me ", "see"]
        peer.calls = [
            {"id": "call_1", "function": {"index": 0, "name": "rain", "arguments": {"in": "Rome"}}},
            {"id": "call_2", "function": {"index": 1, "name": "rain", "arguments": {"in": "Oslo"}}},
        ]
        yield peer


@pytest.fixture(scope="module")
def openai() -> Iterator[OpenAIServer]:
    with OpenAIServer("large") as peer:
        peer.thoughts = ["let me ", "see"]
        peer.calls = [
            {"index": 0, "id": "call_1", "type": "function", "function": {"name": "rain", "arguments": ""}},
            {"index": 0, "function": {"arguments": '{"in":'}},
            {"index": 0, "function": {"arguments": '"Rome"}'}},
            {"index": 1, "id": "call_2", "function": {"name": "rain", "arguments": '{"in":"Oslo"}'}},
        ]
        yield peer


@pytest.fixture(scope="module")
def daemon(
    tmp_path_factory: pytest.TempPathFactory, ollama: OllamaServer, openai: OpenAIServer
) -> Iterator[DaemonProcess]:
    """`local` would have a server in its place, which must not hide that it cannot use tools itself."""
    folder = tmp_path_factory.mktemp("tools")
    text = config_text({"local": script(folder, "local", tokens=["local"])})
    text = text.replace("/local.json, backend: fake", f"/local.json, backend: fake, fallback: [{LAB}]")
    remotes = f"  box: {{type: ollama, url: '{ollama.url}'}}\n  lab: {{type: openai, url: '{openai.url}'}}\n"
    config = folder / "h2qd.yaml"
    config.write_text(f"{text}remotes:\n{remotes}")
    with started(folder, config) as daemon:
        client = daemon.client()
        await_true(lambda: {LAB, BOX} <= {row.name for row in client.models().models}, "both are listed")
        yield daemon


@pytest.fixture
def client(daemon: DaemonProcess) -> Client:
    return daemon.client()


# --- by the library -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [LAB, BOX])
@pytest.mark.parametrize("stream", [False, True])
def test_a_round_trip(client: Client, model: str, stream: bool) -> None:
    messages = [QUESTION]
    rounds = []
    for _ in range(2):
        if stream:
            with client.chat(messages, model, stream=True, tools=[RAIN]) as pieces:
                said = "".join(pieces)
                answer = pieces.answer
            assert answer is not None
            assert (said, pieces.thinking) == (answer.text, answer.thinking)
        else:
            answer = client.chat(messages, model, tools=[RAIN])
        rounds.append(answer)
        messages += [answered(answer), *(outcome(call, "no") for call in answer.tool_calls)]
    first, second = rounds
    assert (first.finish, first.text, first.thinking) == ("tool_calls", "", "let me see")
    assert first.tool_calls == [
        m.ToolCall("call_1", "rain", '{"in":"Rome"}'),
        m.ToolCall("call_2", "rain", '{"in":"Oslo"}'),
    ]
    assert (second.finish, second.text, second.tool_calls) == ("stop", "tok0 tok1 tok2 tok3 ", [])
    assert [message.role for message in messages] == ["user", "assistant", "tool", "tool", "assistant"]


def test_what_was_thought_is_in_the_chunks_and_not_in_the_text(client: Client) -> None:
    with client.chat([QUESTION], LAB, stream=True, think="low") as stream:
        deltas = list(stream.deltas())
    assert "".join(delta.thinking for delta in deltas) == "let me see"
    assert "".join(delta.text for delta in deltas) == "tok0 tok1 tok2 tok3 "
    assert stream.answer is not None
    assert stream.answer.thinking == "let me see"


def test_a_swarm_votes_on_texts(client: Client) -> None:
    reply = client.swarm([QUESTION], [LAB, BOX])
    assert [row.text for row in reply.answers] == ["tok0 tok1 tok2 tok3 "] * 2
    assert reply.consensus is not None
    assert (reply.consensus.votes, reply.consensus.text) == (2, "tok0 tok1 tok2 tok3 ")


@pytest.mark.parametrize(
    ("messages", "options", "named"),
    [
        ([QUESTION], {"tools": [RAIN]}, "tools"),
        ([QUESTION], {"think": False}, "think"),
        ([m.ChatMessage("user", "", images=[PNG])], {}, "images"),
    ],
)
def test_a_model_of_this_device_refuses_before_it_is_loaded(
    client: Client, messages: list[m.ChatMessage], options: dict[str, object], named: str
) -> None:
    client.load(LAB)
    with pytest.raises(H2qError, match=f"cannot use {named} here: models of the types ollama and openai") as raised:
        client.chat(messages, "local", **options)  # type: ignore[call-overload]
    assert raised.value.code == "unsupported"
    assert client.status().resident == [LAB], "nothing went for it"


def test_an_engine_of_this_device_refuses_in_a_swarm_only_itself(client: Client) -> None:
    reply = client.swarm([m.ChatMessage("user", "", images=[PNG])], ["local", LAB], method="none")
    local, lab = reply.answers
    assert local.error is not None
    assert local.error.code == "unsupported"
    assert lab.ok


def test_too_much_is_refused_by_the_name_of_the_limit(client: Client) -> None:
    with pytest.raises(H2qError, match="IMAGES_MAX") as raised:
        client.chat([m.ChatMessage("user", "", images=[PNG] * 9)] * 2, LAB)
    assert raised.value.code == "invalid_request"
    with pytest.raises(H2qError, match="length <= 3145728"):
        client.chat([m.ChatMessage("user", "", images=[PNG + bytes(3 << 20)])], LAB)
    with pytest.raises(H2qError) as raised:
        client.chat([m.ChatMessage("user", "", images=[PNG + bytes(2 << 20)] * 3)], LAB)
    assert raised.value.code == "too_large"


def test_the_largest_images_go_through(client: Client, openai: OpenAIServer) -> None:
    images = [PNG + bytes(2 << 20), PNG + bytes((2 << 20) - 4096)]
    assert client.chat([m.ChatMessage("user", "see", images=images)], LAB).text == "tok0 tok1 tok2 tok3 "
    parts = openai.requests[-1].json["messages"][0]["content"]
    assert [len(part["image_url"]["url"]) > 2 << 20 for part in parts[1:]] == [True, True]


# --- by the tool ----------------------------------------------------------------------------------------


def test_a_round_trip_at_the_terminal(daemon: DaemonProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "tools.json").write_text(json.dumps([{"type": "function", "function": RAIN}]))
    (tmp_path / "oslo.txt").write_text("yes\n")
    socket = str(daemon.socket)
    words = ("chat", LAB, "--session", "rome", "--tools", str(tmp_path / "tools.json"))
    first = tool(socket, *words, stdin=QUESTION.content)
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == 'call_1 rain({"in":"Rome"})\ncall_2 rain({"in":"Oslo"})\n', "no thoughts in a pipe"
    half = tool(socket, *words, "--tool-result", "call_1=-", stdin="no")
    assert half.returncode == 2
    assert "fix: they are: call_1, call_2" in half.stderr
    results = ("--tool-result", "call_1=-", "--tool-result", f"call_2={tmp_path / 'oslo.txt'}")
    second = tool(socket, *words, *results, "--json", "--no-stream", stdin="no")
    assert (second.returncode, second.stderr) == (0, "")
    reply = json.loads(second.stdout)
    assert (reply["text"], reply["thinking"], reply["tool_calls"]) == ("tok0 tok1 tok2 tok3 ", "let me see", [])
    third = tool(socket, *words, "--tool-result", "call_1=-", stdin="no")
    assert third.returncode == 2
    assert "cannot go on without one result for each call" in third.stderr
    kept = json.loads((tmp_path / "h2qctl" / "sessions" / "rome.json").read_text())["messages"]
    assert [message["role"] for message in kept] == ["user", "assistant", "tool", "tool", "assistant"]
    assert "let me see" not in json.dumps(kept), "thoughts are not remembered"


def test_calls_as_json(daemon: DaemonProcess, tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text(json.dumps([RAIN]))
    words = ("chat", BOX, "--tools", str(tmp_path / "tools.json"), "--json", "--no-think")
    ran = tool(str(daemon.socket), *words, stdin="Rain?")
    assert ran.returncode == 0
    reply = json.loads(ran.stdout.splitlines()[-1])["reply"]
    assert reply["tool_calls"][1] == {"id": "call_2", "name": "rain", "arguments": '{"in":"Oslo"}'}
    assert (reply["finish"], reply["thinking"]) == ("tool_calls", "")


def test_an_image_at_the_terminal(daemon: DaemonProcess, tmp_path: Path, ollama: OllamaServer) -> None:
    (tmp_path / "photo.png").write_bytes(PNG)
    ran = tool(str(daemon.socket), "chat", BOX, "--image", str(tmp_path / "photo.png"), stdin="What is it?")
    assert (ran.returncode, ran.stdout) == (0, "tok0 tok1 tok2 tok3 \n")
    assert len(ollama.asked("/api/chat")[-1].json["messages"][0]["images"]) == 1
    refused = tool(str(daemon.socket), "chat", "local", "--image", str(tmp_path / "photo.png"), stdin="What is it?")
    assert refused.returncode != 0
    assert "error[unsupported]: cannot use images here" in refused.stderr
