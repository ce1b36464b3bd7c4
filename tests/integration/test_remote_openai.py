"""The engine of remote models against a peer of OpenAI's API."""

import math
from collections.abc import Iterator
from typing import Any

import pytest

from h2qd.wire.workers import (
    Embedded,
    Generated,
    HeldElsewhere,
    ListModels,
    PullModel,
    RemoteTarget,
    Sampler,
    ScoreText,
    Text,
)
from h2qd.worker.engine import Beat, EngineError
from h2qd.worker.remote.engine import ask_server
from tests.peers.desk import Desk, chat, embed, prompt
from tests.peers.http_server import Request, Response
from tests.peers.openai_server import OpenAIServer

KEY = "sk-proj-0123456789abcdef"


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer("small", "other") as peer:
        yield peer


@pytest.fixture
def desk() -> Iterator[Desk]:
    with Desk() as at:
        yield at


# --- load -----------------------------------------------------------------------------------------------


def test_a_load_is_a_look_and_holds_nothing(server: OpenAIServer, desk: Desk) -> None:
    loaded = desk.load("openai", server.url)
    assert (loaded.ctx, loaded.device, loaded.elsewhere_bytes) == (256, "remote", 0)
    assert desk.engine.unsaved == 0
    assert desk.engine.save() == HeldElsewhere(0)
    assert [request.path for request in server.requests] == ["/v1/models"]


def test_the_context_is_the_servers_where_it_says_so(desk: Desk) -> None:
    with OpenAIServer(style="vllm") as server:
        assert desk.load("openai", server.url, ctx=4096).ctx == 512


def test_a_model_that_is_not_offered_is_a_failed_load(server: OpenAIServer, desk: Desk) -> None:
    with pytest.raises(EngineError, match="the server has no model 'absent'") as caught:
        desk.load("openai", server.url, "absent")
    assert caught.value.code == "remote_failed"


def test_a_server_of_one_model_answers_to_any_name(desk: Desk) -> None:
    with OpenAIServer("/models/some.gguf") as server:
        desk.load("openai", server.url, "whatever")


def test_a_server_without_a_list_may_still_have_the_model(server: OpenAIServer, desk: Desk) -> None:
    async def nothing(_: Request, response: Response) -> None:
        await response.whole(404, {"detail": "Not Found"})

    server.fail("/v1/models", nothing)
    desk.load("openai", server.url)
    assert desk.ask(chat())[0] == "tok0 tok1 tok2 tok3 "


def test_a_list(server: OpenAIServer) -> None:
    listed = ask_server(ListModels(RemoteTarget("openai", server.url)), Beat(), lambda _: None)
    assert [model.name for model in listed.models] == ["small", "other"]


def test_nothing_can_be_pulled(server: OpenAIServer) -> None:
    with pytest.raises(EngineError) as caught:
        ask_server(PullModel(RemoteTarget("openai", server.url), "small"), Beat(), lambda _: None)
    assert caught.value.code == "unsupported"


# --- the key --------------------------------------------------------------------------------------------


def test_a_key_from_the_environment(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    with OpenAIServer(key=KEY) as server:
        desk.load("openai", server.url, key_env="SOME_KEY")
        assert desk.ask(chat())[0] == "tok0 tok1 tok2 tok3 "


def test_a_key_from_a_credential(desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "cloud").write_text(KEY + "\n")
    with OpenAIServer(key=KEY) as server:
        desk.load("openai", server.url, key_credential="cloud")
        assert desk.ask(chat())[0] == "tok0 tok1 tok2 tok3 "


def test_a_refused_key_is_not_quoted(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    with OpenAIServer(key="another") as server, pytest.raises(EngineError) as caught:
        desk.load("openai", server.url, key_env="SOME_KEY")
    assert caught.value.code == "remote_failed"
    assert caught.value.message == "the server answered 401: Incorrect API key provided: …."


# --- text -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", [chat, prompt])
def test_text_and_its_counts(server: OpenAIServer, desk: Desk, ask: Any) -> None:
    desk.load("openai", server.url)
    text, last = desk.ask(ask())
    assert text == "tok0 tok1 tok2 tok3 "
    assert isinstance(last, Generated)
    assert (last.finish, last.prompt_tokens, last.completion_tokens, last.cached_tokens) == ("stop", 7, 4, 3)
    assert last.prefill_ms == last.first_token_ms


def test_without_usage_the_parts_are_counted(server: OpenAIServer, desk: Desk) -> None:
    server.usage = None
    desk.load("openai", server.url)
    _, last = desk.ask(chat(max_tokens=3))
    assert isinstance(last, Generated)
    assert (last.finish, last.prompt_tokens, last.completion_tokens) == ("length", 0, 3)


def test_fields_of_the_api_are_sent_and_others_only_when_asked_for(server: OpenAIServer, desk: Desk) -> None:
    desk.load("openai", server.url)
    sampler = Sampler(temperature=0.5, top_p=0.25, seed=3, logit_bias={5: -1.0}, json_schema='{"type":"object"}')
    desk.ask(chat(sampler=sampler, stop=["END"], max_tokens=9, logprobs=1))
    assert server.requests[-1].json == {
        "model": "small",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello there"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.25,
        "seed": 3,
        "stop": ["END"],
        "logit_bias": {"5": -1.0},
        "logprobs": True,
        "top_logprobs": 1,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
        },
    }


def test_a_server_that_has_no_such_field_says_so(server: OpenAIServer, desk: Desk) -> None:
    desk.load("openai", server.url)
    failed = desk.fails(chat(sampler=Sampler(top_k=3)))
    assert (failed.code, failed.message) == (
        "remote_failed",
        "the server answered 400: Unrecognized request argument supplied: top_k",
    )


def test_fields_that_others_have(desk: Desk) -> None:
    with OpenAIServer(style="llama.cpp") as server:
        desk.load("openai", server.url)
        sampler = Sampler(top_k=3, min_p=0.5, repeat_penalty=1.5, repeat_last_n=8)
        desk.ask(chat(sampler=sampler, ignore_eos=True))
        asked = server.requests[-1].json
        extras = {"top_k": 3, "min_p": 0.5, "repeat_penalty": 1.5, "repetition_penalty": 1.5, "repeat_last_n": 8}
        assert {name: asked[name] for name in extras} == extras
        assert asked["ignore_eos"] is True


def test_a_field_that_a_model_does_not_take_is_left_out_from_then_on(server: OpenAIServer, desk: Desk) -> None:
    desk.load("openai", server.url)
    server.refuses = {
        "max_tokens": {"message": "Use 'max_completion_tokens' instead.", "param": "max_tokens"},
        "temperature": {"message": "Only the default (1) is supported.", "param": "temperature"},
    }
    assert desk.ask(chat())[0] == "tok0 tok1 tok2 tok3 "
    before = len(server.requests)
    assert desk.ask(chat())[0] == "tok0 tok1 tok2 tok3 "
    assert len(server.requests) == before + 1
    assert server.requests[-1].json["max_completion_tokens"] == 100


def test_a_field_that_was_wanted_is_not_left_out(server: OpenAIServer, desk: Desk) -> None:
    desk.load("openai", server.url)
    server.refuses = {"temperature": {"message": "Only the default (1) is supported.", "param": "temperature"}}
    failed = desk.fails(chat(sampler=Sampler(temperature=0.1)))
    assert (failed.code, failed.message) == (
        "remote_failed",
        "the server answered 400: Only the default (1) is supported.",
    )


@pytest.mark.parametrize("ask", [chat, prompt])
def test_log_probabilities(server: OpenAIServer, desk: Desk, ask: Any) -> None:
    desk.load("openai", server.url)
    said = desk.run(ask(logprobs=2))[1]
    chosen = [one for message in said if isinstance(message, Text) for one in message.logprobs]
    assert [(one.token, one.text, one.logprob) for one in chosen] == [(0, f"tok{n} ", -0.5) for n in range(4)]
    assert [(other.text, other.logprob) for other in chosen[3].top] == [("alt0", -1.5), ("alt1", -2.5)]


def test_a_prompt_that_is_too_long(server: OpenAIServer, desk: Desk) -> None:
    desk.load("openai", server.url)
    server.refuses = {"messages": {"message": "maximum context length is 8", "code": "context_length_exceeded"}}
    assert desk.fails(chat()).code == "context_overflow"


def test_what_the_api_does_not_have_is_refused(server: OpenAIServer, desk: Desk) -> None:
    desk.load("openai", server.url)
    for order in (chat(sampler=Sampler(grammar='root ::= "a"')), ScoreText(1, "text")):
        with pytest.raises(EngineError) as caught:
            desk.engine.submit(order)
        assert caught.value.code == "unsupported"


def test_a_limit_that_a_server_tells_is_kept_to(server: OpenAIServer, desk: Desk) -> None:
    async def used_up(request: Request, response: Response) -> None:
        response.headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "5m0s"}
        await server.handle(request, response)

    desk.load("openai", server.url)
    server.fail("/v1/chat/completions", used_up)
    assert desk.ask(chat(1))[0] == "tok0 tok1 tok2 tok3 "
    asked = len(server.requests)
    assert desk.fails(chat(2)).code == "queue_full"
    assert len(server.requests) == asked


# --- vectors --------------------------------------------------------------------------------------------


def test_vectors_are_in_order_and_of_unit_length(server: OpenAIServer, desk: Desk) -> None:
    desk.load("openai", server.url)
    _, last = desk.ask(embed(1, "a", "b"))
    assert isinstance(last, Embedded)
    assert all(math.isclose(math.hypot(*vector), 1) for vector in last.vectors)
    assert last.vectors[0] == [0.6, 0.8, 0.0]
    _, last = desk.ask(embed(1, "a", "b", normalize=False))
    assert isinstance(last, Embedded)
    assert (last.vectors, last.prompt_tokens) == ([[3.0, 4.0, 0.0], [3.0, 4.0, 1.0]], 5)


@pytest.mark.parametrize(
    "data",
    [
        [],
        [{"index": 0, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}],
        [{"index": n, "embedding": []} for n in range(2)],
        [{"index": n, "embedding": [1.0] * 65537} for n in range(2)],
        [{"index": n, "embedding": ["x"]} for n in range(2)],
    ],
)
def test_vectors_that_are_none(server: OpenAIServer, desk: Desk, data: list[Any]) -> None:
    async def answer(_: Request, response: Response) -> None:
        await response.whole(200, {"data": data})

    desk.load("openai", server.url)
    server.fail("/v1/embeddings", answer)
    assert desk.fails(embed()).code == "remote_failed"


def test_more_vectors_than_a_message_holds(server: OpenAIServer, desk: Desk) -> None:
    async def answer(_: Request, response: Response) -> None:
        await response.whole(200, {"data": [{"index": n, "embedding": [1.0] * 65536} for n in range(14)]})

    desk.load("openai", server.url)
    server.fail("/v1/embeddings", answer)
    failed = desk.fails(embed(1, *(str(n) for n in range(14))))
    assert (failed.code, "ask for fewer texts" in failed.message) == ("remote_failed", True)
