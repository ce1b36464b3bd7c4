"""The engine of remote models against an Ollama peer."""

import asyncio
import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from h2qd.wire.workers import (
    Embedded,
    Generated,
    HeldElsewhere,
    Listed,
    ListModels,
    PullModel,
    RemoteTarget,
    RunningModel,
    Sampler,
    ScoreText,
    Text,
    TokenizeText,
    Turn,
)
from h2qd.worker.engine import Beat, EngineError
from h2qd.worker.remote import engine as remote_engine
from h2qd.worker.remote import ollama
from h2qd.worker.remote.engine import ask_server
from tests.peers.desk import Desk, chat, embed, prompt
from tests.peers.http_server import Request, Response
from tests.peers.ollama_server import MIB, Model, OllamaServer


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with OllamaServer(Model("small:latest"), Model("other:latest", size=100 * MIB)) as peer:
        yield peer


@pytest.fixture
def desk() -> Iterator[Desk]:
    with Desk() as at:
        yield at


def target(server: OllamaServer, **fields: Any) -> RemoteTarget:
    return RemoteTarget("ollama", server.url, **fields)


# --- load and unload ------------------------------------------------------------------------------------


def test_a_load_holds_the_model_there_on_a_lease_and_tells_what_it_takes(server: OllamaServer, desk: Desk) -> None:
    loaded = desk.load("ollama", server.url)
    assert (loaded.ctx, loaded.device, loaded.elsewhere_bytes) == (256, "cpu", 300 * MIB)
    assert server.loaded["small:latest"].keep_s == ollama.LEASE_S
    assert desk.engine.unsaved == 1


@pytest.mark.parametrize(
    ("vram", "device", "elsewhere"), [(0, "cpu", 300), (100 * MIB, "cpu+gpu", 200), (300 * MIB, "gpu", 0)]
)
def test_memory_of_a_gpu_is_not_the_devices(vram: int, device: str, elsewhere: int) -> None:
    with OllamaServer(Model("small:latest", size_vram=vram)) as server, Desk() as desk:
        loaded = desk.load("ollama", server.url)
        assert (loaded.device, loaded.elsewhere_bytes) == (device, elsewhere * MIB)
        running = [RunningModel("small:latest", elsewhere * MIB)] if elsewhere else []
        assert listed(server).running == running


@pytest.mark.parametrize("vram", [0, 100 * MIB, 300 * MIB])
def test_memory_of_a_gpu_without_its_own_is_the_devices(vram: int) -> None:
    with OllamaServer(Model("small:latest", size_vram=vram)) as server, Desk() as desk:
        assert desk.load("ollama", server.url, gpu_shares_memory=True).elsewhere_bytes == 300 * MIB
        assert listed(server, gpu_shares_memory=True).running == [RunningModel("small:latest", 300 * MIB)]


def listed(server: OllamaServer, **fields: Any) -> Listed:
    return ask_server(ListModels(target(server, **fields)), Beat(), lambda _: None)


def test_memory_of_another_device_is_left_to_its_server(server: OllamaServer, desk: Desk) -> None:
    loaded = desk.load("ollama", server.url, shares_memory="false")
    assert loaded.elsewhere_bytes == 0
    assert desk.engine.unsaved == 0
    assert listed(server, shares_memory="false").running == []
    assert all("keep_alive" not in request.json for request in server.requests if request.body)


def test_an_unload_is_proved(server: OllamaServer, desk: Desk) -> None:
    desk.load("ollama", server.url)
    server.models["other:latest"].size_vram = 10 * MIB
    desk_other = Desk()
    with desk_other:
        desk_other.load("ollama", server.url, "other")
        assert desk.engine.save() == HeldElsewhere(0, [RunningModel("other:latest", 90 * MIB)])
        assert list(server.loaded) == ["other:latest"]


def test_an_unload_waits_for_who_still_uses_the_model(server: OllamaServer, desk: Desk) -> None:
    desk.load("ollama", server.url)
    server.call(lambda: setattr(server.loaded["small:latest"], "users", 1))
    looks = len(server.asked("/api/ps"))

    async def leave_later(request: Request, response: Response) -> None:
        if len(server.asked("/api/ps")) > looks + 3:
            server.loaded["small:latest"].users = 0
            server.loaded.clear()
        await server.handle(request, response)

    server.fail("/api/ps", leave_later, 100)
    assert desk.engine.save() == HeldElsewhere(0)
    assert len(server.asked("/api/ps")) > looks + 3


def test_an_unload_that_does_not_happen_says_what_is_still_held(
    server: OllamaServer, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ollama, "UNLOAD_S_MAX", 0.2)
    desk.load("ollama", server.url)
    server.call(lambda: setattr(server.loaded["small:latest"], "users", 1))
    assert desk.engine.save() == HeldElsewhere(300 * MIB, [RunningModel("small:latest", 300 * MIB)])


def test_an_unload_without_a_server_proves_nothing(desk: Desk) -> None:
    with OllamaServer(Model("small:latest")) as server:
        desk.load("ollama", server.url)
    assert desk.engine.save() == HeldElsewhere(300 * MIB)


def test_a_stop_that_may_not_wait_still_has_the_model_unloaded(server: OllamaServer, desk: Desk) -> None:
    desk.load("ollama", server.url)
    desk.engine.stop()
    assert server.wait_asked("/api/generate", 2)
    server.call(lambda: None)
    assert server.asked("/api/generate")[-1].json["keep_alive"] == 0


@pytest.mark.parametrize(("model", "words"), [("absent", "model 'absent:latest' not found"), ("x/y:1", "not found")])
def test_a_model_that_is_not_there_is_a_failed_load(server: OllamaServer, desk: Desk, model: str, words: str) -> None:
    with pytest.raises(EngineError, match=words) as caught:
        desk.load("ollama", server.url, model)
    assert caught.value.code == "remote_failed"


@pytest.mark.parametrize("path", ["/api/show", "/api/generate"])
def test_a_load_that_the_server_fails_at_says_nothing_of_its_other_models(
    server: OllamaServer, desk: Desk, path: str
) -> None:
    async def broken(_: Request, response: Response) -> None:
        await response.whole(500, {"error": "unable to load model"})

    server.fail(path, broken)
    with pytest.raises(EngineError, match="unable to load model") as caught:
        desk.load("ollama", server.url)
    assert (caught.value.code, caught.value.away) == ("generation_failed", False)


def test_a_model_that_runs_elsewhere_holds_nothing_here_and_is_not_spoken_of(desk: Desk) -> None:
    with OllamaServer(Model("small:latest", remote_host="https://far.example")) as server:
        loaded = desk.load("ollama", server.url)
        assert (loaded.ctx, loaded.device, loaded.elsewhere_bytes) == (256, "remote", 0)
        assert server.asked("/api/generate") == []
        assert desk.engine.unsaved == 0
        assert desk.ask(chat())[0] == "tok0 tok1 tok2 tok3 "
        assert "keep_alive" not in server.asked("/api/chat")[-1].json


def test_embedding_models_are_loaded_without_generating(desk: Desk) -> None:
    with OllamaServer(Model("small:latest", capabilities=["embedding"])) as server:
        assert desk.load("ollama", server.url).elsewhere_bytes == 300 * MIB
        assert server.asked("/api/generate") == []


# --- the lease ------------------------------------------------------------------------------------------


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look renews."""
    monkeypatch.setattr(remote_engine, "WATCH_S", 0.01)
    monkeypatch.setattr(ollama, "RENEW_S", 0.0)


def more(server: OllamaServer, path: str, times: int = 2) -> bool:
    """So many more requests for `path`: of two, one was begun from now on."""
    return server.wait_asked(path, len(server.asked(path)) + times)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("kind", ["completion", "embedding"])
def test_an_idle_model_stays_there_past_its_lease(desk: Desk, kind: str) -> None:
    with OllamaServer(Model("small:latest", capabilities=[kind])) as server:
        desk.load("ollama", server.url)
        path = "/api/embed" if kind == "embedding" else "/api/generate"
        for _ in range(3):
            assert more(server, path)
            server.advance(ollama.LEASE_S * 0.9)
        assert server.loads == 1
        assert list(server.loaded) == ["small:latest"]
        last = server.asked(path)[-1].json
        assert (last["options"], last["keep_alive"]) == ({"num_ctx": 256}, ollama.LEASE_S)


def test_a_model_that_nobody_looks_for_any_more_goes(server: OllamaServer) -> None:
    with Desk() as desk:
        desk.load("ollama", server.url)
        server.advance(ollama.LEASE_S * 0.9)
        desk.ask(prompt())
        server.advance(ollama.LEASE_S * 0.9)
        assert "small:latest" in server.loaded, "each request renews"
    server.advance(ollama.LEASE_S)
    assert server.loaded == {}


def test_what_was_asked_for_lately_is_only_looked_for(
    server: OllamaServer, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_engine, "WATCH_S", 0.01)
    desk.load("ollama", server.url)
    assert more(server, "/api/ps", 5)
    assert len(server.asked("/api/generate")) == 1


def test_a_renewal_does_not_load_a_model_that_somebody_unloaded(
    server: OllamaServer, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_engine, "WATCH_S", 0.01)
    desk.load("ollama", server.url)
    heard = HeardAsides(desk)
    server.expire("small:latest")
    assert heard.next() == HeldElsewhere(0)
    monkeypatch.setattr(ollama, "RENEW_S", 0.0)
    assert more(server, "/api/ps", 5)
    assert (server.loads, server.loaded) == (1, {})


@pytest.mark.usefixtures("eager")
def test_a_renewal_that_fails_hides_nothing(server: OllamaServer, desk: Desk) -> None:
    async def broken(_: Request, response: Response) -> None:
        await response.whole(500, {"error": "no"})

    desk.load("ollama", server.url)
    heard = HeardAsides(desk)
    server.fail("/api/generate", broken, 10_000)
    assert more(server, "/api/generate", 3), "it is tried again"
    server.advance(ollama.LEASE_S)
    assert heard.next() == HeldElsewhere(0), "it went, and that is told"


@pytest.mark.usefixtures("eager")
def test_an_unload_waits_for_a_renewal_under_way(server: OllamaServer, desk: Desk) -> None:
    under_way = threading.Event()

    async def slow(request: Request, response: Response) -> None:
        under_way.set()
        await asyncio.sleep(0.2)
        await server.handle(request, response)

    desk.load("ollama", server.url)
    server.fail("/api/generate", slow)
    assert under_way.wait(20)
    assert desk.engine.save() == HeldElsewhere(0)
    assert more(server, "/api/ps", 5)
    assert (server.loads, server.loaded) == (1, {})
    assert server.asked("/api/generate")[-1].json["keep_alive"] == 0


# --- what others do to it -------------------------------------------------------------------------------


def test_the_watch_tells_when_a_model_goes_and_comes_again(
    server: OllamaServer, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_engine, "WATCH_S", 0.02)
    desk.load("ollama", server.url)
    heard = HeardAsides(desk)
    server.expire("small:latest")
    assert heard.next() == HeldElsewhere(0)
    text, _ = desk.ask(prompt())
    assert text == "tok0 tok1 tok2 tok3 "
    assert heard.next() == HeldElsewhere(300 * MIB, [RunningModel("small:latest", 300 * MIB)])
    assert server.loads == 2
    assert server.loaded["small:latest"].keep_s == ollama.LEASE_S


def test_names_that_share_weights_share_what_is_loaded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_engine, "WATCH_S", 0.02)
    models = [Model(f"{name}:latest", weights="sha256-ab") for name in ("small", "first")]
    with OllamaServer(*models, Model("other:latest")) as server, Desk() as stranger, Desk() as twin:
        stranger.load("ollama", server.url, "other")
        twin.load("ollama", server.url, "first")
        loaded = desk.load("ollama", server.url, "small")
        assert server.loads == 2
        assert (loaded.ctx, loaded.elsewhere_bytes) == (256, 0), "its memory is counted once, where it stands"
        heard = HeardAsides(desk)
        assert more(server, "/api/ps", 5)
        shown = [request.json["model"] for request in server.asked("/api/show")]
        assert shown == ["other", "first", "small", "other:latest", "first:latest"], "each is asked about once"
        others = RunningModel("other:latest", 300 * MIB)
        server.expire("first:latest")
        assert heard.next() == HeldElsewhere(0, [others])
        assert twin.ask(prompt())[0]
        assert heard.next() == HeldElsewhere(0, [others, RunningModel("first:latest", 300 * MIB)])
        assert desk.engine.save() == HeldElsewhere(0, [others]), "it went with the name that it stood under"


def test_a_model_that_runs_and_is_on_no_disk_is_nobody_s(server: OllamaServer, desk: Desk) -> None:
    with Desk() as other:
        other.load("ollama", server.url, "other")
        del server.models["other:latest"]
        assert desk.load("ollama", server.url).elsewhere_bytes == 300 * MIB
        assert desk.engine.save() == HeldElsewhere(0, [RunningModel("other:latest", 100 * MIB)])


@pytest.mark.usefixtures("eager")
def test_what_others_had_loaded_with_another_context_is_left_to_them(server: OllamaServer, desk: Desk) -> None:
    desk.load("ollama", server.url)
    with Desk() as other:
        other.load("ollama", server.url, ctx=512)
        assert more(server, "/api/ps", 5)
        assert server.loads == 2, "no renewal loaded it anew"
        assert desk.ask(prompt())[0]
        assert server.loads == 3


class HeardAsides:
    """Waits for what the engine says of no request, once it has told what is there after the load."""

    def __init__(self, desk: Desk) -> None:
        self._queue: queue.SimpleQueue[HeldElsewhere] = queue.SimpleQueue()
        desk.engine._aside = self._queue.put
        assert desk.asides or self.next().running

    def next(self) -> HeldElsewhere:
        return self._queue.get(timeout=20)


# --- text -----------------------------------------------------------------------------------------------


def test_a_prompt_goes_raw_and_its_figures_come_back(server: OllamaServer, desk: Desk) -> None:
    desk.load("ollama", server.url)
    text, last = desk.ask(prompt(max_tokens=3))
    assert text == "tok0 tok1 tok2 "
    assert isinstance(last, Generated)
    assert (last.finish, last.prompt_tokens, last.completion_tokens) == ("length", 4, 3)
    assert (last.prefill_ms, last.decode_ms) == (2.0, 4.0)
    asked = server.asked("/api/generate")[-1].json
    assert (asked["raw"], asked["prompt"], asked["keep_alive"]) == (True, "once upon a time", ollama.LEASE_S)
    assert server.loads == 1


def test_a_chat_goes_through_the_models_template(server: OllamaServer, desk: Desk) -> None:
    desk.load("ollama", server.url)
    text, last = desk.ask(chat())
    assert text == "tok0 tok1 tok2 tok3 "
    assert isinstance(last, Generated)
    assert last.finish == "stop"
    asked = server.asked("/api/chat")[-1].json
    assert asked["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello there"},
    ]
    assert not {"think", "tools"} & asked.keys(), "how it thinks is its own way"


def test_every_sampling_field_is_an_option(server: OllamaServer, desk: Desk) -> None:
    desk.load("ollama", server.url)
    sampler = Sampler(
        temperature=0.5,
        top_k=7,
        top_p=0.5,
        min_p=0.25,
        repeat_penalty=1.5,
        repeat_last_n=9,
        seed=11,
        json_schema='{"type": "object"}',
    )
    desk.ask(prompt(sampler=sampler, stop=["END"], max_tokens=2, logprobs=2))
    asked = server.asked("/api/generate")[-1].json
    assert asked["options"] == {
        "num_ctx": 256,
        "num_predict": 2,
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.5,
        "min_p": 0.25,
        "repeat_penalty": 1.5,
        "repeat_last_n": 9,
        "seed": 11,
        "stop": ["END"],
    }
    assert asked["format"] == {"type": "object"}
    assert (asked["logprobs"], asked["top_logprobs"]) == (True, 2)


def test_log_probabilities_come_with_the_text(server: OllamaServer, desk: Desk) -> None:
    desk.load("ollama", server.url)
    said = desk.run(prompt(logprobs=2))[1]
    chosen = [one for message in said if isinstance(message, Text) for one in message.logprobs]
    assert [(one.text, one.logprob) for one in chosen] == [(f"tok{n} ", -0.5) for n in range(4)]
    assert [(other.text, other.logprob) for other in chosen[0].top] == [("alt0", -1.5), ("alt1", -2.5)]


def test_thoughts_are_not_passed_on(server: OllamaServer, desk: Desk) -> None:
    desk.load("ollama", server.url)

    async def thinking(_: Request, response: Response) -> None:
        await response.begin("application/x-ndjson")
        await response.chunk(b'{"message":{"role":"assistant","content":"","thinking":"hmm"},"done":false}\n')
        await response.chunk(b'{"message":{"role":"assistant","content":"yes"},"done":false}\n')
        await response.chunk(b'{"message":{"role":"assistant","content":""},"done":true,"done_reason":"stop"}\n')
        await response.end()

    server.fail("/api/chat", thinking)
    assert desk.ask(chat())[0] == "yes"


@pytest.mark.parametrize(
    ("order", "code"),
    [
        (prompt(sampler=Sampler(grammar='root ::= "a"')), "unsupported"),
        (prompt(sampler=Sampler(logit_bias={1: 2.0})), "unsupported"),
        (prompt(ignore_eos=True), "unsupported"),
        (prompt(max_tokens=0), "unsupported"),
        (prompt(sampler=Sampler(json_schema='{}, "model": "other"')), "invalid_grammar"),
        (prompt(sampler=Sampler(json_schema="[" * 60000)), "invalid_grammar"),
        (embed(1, "text", normalize=False), "unsupported"),
        (ScoreText(1, "text"), "unsupported"),
        (TokenizeText(1, "text"), "unsupported"),
    ],
)
def test_what_it_cannot_do_is_refused_before_anything_is_sent(
    server: OllamaServer, desk: Desk, order: Any, code: str
) -> None:
    desk.load("ollama", server.url)
    before = len(server.requests)
    with pytest.raises(EngineError) as caught:
        desk.engine.submit(order)
    assert caught.value.code == code
    assert not desk.engine.busy
    assert len(server.requests) == before


def test_a_prompt_that_is_too_long_is_refused_as_locally(server: OllamaServer, desk: Desk) -> None:
    desk.load("ollama", server.url)
    assert desk.fails(prompt(text="word " * 300)).code == "context_overflow"
    assert desk.fails(embed(1, "word " * 300)).code == "context_overflow"
    assert desk.ask(prompt(text="word " * 300, overflow="truncate"))[0] == "tok0 tok1 tok2 tok3 "
    assert desk.fails(chat(text="word " * 300)).code == "context_overflow"
    assert desk.fails(chat(text="word " * 300, overflow="truncate")).code == "context_overflow"


def test_vectors(desk: Desk) -> None:
    with OllamaServer(Model("small:latest", capabilities=["embedding"])) as server:
        desk.load("ollama", server.url)
        _, last = desk.ask(embed(1, "one two", "three"))
        assert isinstance(last, Embedded)
        assert last.vectors == [[0.6, 0.8, 0.0, 0.0]] * 2
        assert (last.prompt_tokens, last.pooling) == (3, "unknown")


@pytest.mark.parametrize("order", [embed(), chat(turns=[Turn("user", "what is it?", images=[b"\x89PNG"])])])
def test_what_a_model_cannot_do_says_nothing_against_the_server(server: OllamaServer, desk: Desk, order: Any) -> None:
    desk.load("ollama", server.url)
    failed = desk.fails(order)
    assert (failed.code, failed.away) == ("unsupported", False)


# --- several at a time ----------------------------------------------------------------------------------


def test_as_many_requests_at_a_time_as_the_target_allows(server: OllamaServer, desk: Desk) -> None:
    desk.load("ollama", server.url, concurrency=2)
    here: list[int] = []
    most: list[int] = []

    async def counted(request: Request, response: Response) -> None:
        here.append(1)
        most.append(len(here))
        server.word_s = 0.01
        await server.handle(request, response)
        here.pop()

    server.fail("/api/generate", counted, 6)
    said = desk.run(*(prompt(n) for n in range(1, 7)))
    assert all(isinstance(messages[-1], Generated) for messages in said.values())
    assert max(most) == 2


def test_a_cancel_closes_the_connection_at_once(server: OllamaServer, desk: Desk) -> None:
    desk.load("ollama", server.url)
    server.word_s = 30
    desk.engine.submit(prompt(7))
    assert server.wait_asked("/api/generate", 2)
    before = desk.beat.count
    desk.engine.cancel(7)
    desk.engine.cancel(8)
    while desk.engine.busy:
        said = desk.engine.step()
        assert all(isinstance(message, Generated) and message.finish == "cancelled" for message in said)
    assert server.wait_connections(0)
    assert server.loaded["small:latest"].users == 0
    assert desk.beat.count >= before


def test_a_cancel_that_comes_with_its_request_is_answered(server: OllamaServer, desk: Desk) -> None:
    desk.load("ollama", server.url)
    for order in (prompt(7), embed(7)):
        desk.engine.submit(order)
        desk.engine.cancel(7)
        said = list(desk.engine.step())
        while desk.engine.busy:
            said += desk.engine.step()
        assert [message.finish for message in said if isinstance(message, Generated)] == ["cancelled"]


def test_the_beat_grows_while_an_answer_is_awaited_and_rests_otherwise(server: OllamaServer, desk: Desk) -> None:
    desk.load("ollama", server.url)
    server.word_s = 30
    desk.engine.submit(prompt(7))
    start = desk.beat.count
    while desk.beat.count < start + 3:
        assert list(desk.engine.step()) == []
    desk.engine.cancel(7)
    while desk.engine.busy:
        desk.engine.step()
    assert not desk.engine.busy


# --- what a server has ----------------------------------------------------------------------------------


def test_a_list(server: OllamaServer) -> None:
    listed = ask_server(ListModels(target(server)), Beat(), lambda _: None)
    assert listed.version == "0.12.6"
    assert [model.name for model in listed.models] == ["small:latest", "other:latest"]
    first = listed.models[0]
    assert (first.size_bytes, first.context_length, first.family) == (300 * MIB, 2048, "gemma3")
    assert (first.quantization, first.parameters, first.embeds) == ("Q4_K_M", 268_100_000, False)
    assert server.wait_connections(0)


def test_a_pull_tells_how_far_it_is(server: OllamaServer) -> None:
    told: list[float] = []
    listed = ask_server(PullModel(target(server), "new:latest"), Beat(), told.append)
    assert "new:latest" in [model.name for model in listed.models]
    assert told[-1] == 1.0
    assert all(0 <= fraction <= 1 for fraction in told)


def test_a_pull_of_what_is_nowhere(server: OllamaServer) -> None:
    with pytest.raises(EngineError, match="cannot pull: pull model manifest: file does not exist") as caught:
        ask_server(PullModel(target(server), "absent"), Beat(), lambda _: None)
    assert caught.value.code == "remote_failed"
