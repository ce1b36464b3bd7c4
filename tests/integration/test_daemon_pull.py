"""Pulls by an Ollama server: seen, shared, given up, and loadable by the name that the reply tells."""

import asyncio
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import psutil
import pytest

from h2qctl import Client, H2qError
from h2qd.runtime.pulls import PULLS_MAX
from h2qd.wire import messages as m
from tests.harness import DaemonProcess, await_true, background, code_of, running
from tests.integration.terminal import begin, tool
from tests.peers.http_server import Request, Response
from tests.peers.ollama_server import MIB, Model, OllamaServer
from tests.peers.openai_server import OpenAIServer

CASED = "hf.co/Org/Tiny-GGUF:Q4_K_M"


@pytest.fixture(scope="module")
def ollama() -> Iterator[OllamaServer]:
    with OllamaServer(Model("small:latest", size=40 * MIB)) as peer:
        yield peer


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, ollama: OllamaServer) -> Iterator[DaemonProcess]:
    with OpenAIServer("gpt-small") as openai:
        remotes = (
            f"remotes:\n  box: {{type: ollama, url: '{ollama.url}'}}\n"
            f"  few: {{type: ollama, url: '{ollama.url}', models: [small, wanted]}}\n"
            f"  lab: {{type: openai, url: '{openai.url}'}}\n"
        )
        with running(tmp_path_factory.mktemp("pull"), extra=remotes) as daemon:
            client = daemon.client()
            await_true(lambda: {"box/small:latest", "few/small:latest", "lab/gpt-small"} == names(client), "listed")
            yield daemon


@pytest.fixture
def client(daemon: DaemonProcess) -> Iterator[Client]:
    """A client of a daemon that holds no model, so that no worker is there but those of pulls."""
    client = daemon.client()
    yield client
    for row in client.ps().models:
        client.unload(row.name)


def names(client: Client) -> set[str]:
    return {row.name for row in client.models().models}


async def slowly(_: Request, response: Response) -> None:
    """A quarter of a pull, and then nothing until the other side goes."""
    await response.begin("application/x-ndjson")
    line = {"status": "pulling", "digest": "sha256:aa", "total": 1000, "completed": 250}
    await response.chunk(msgspec.json.encode(line) + b"\n")
    await response.silence()


def pulling(client: Client) -> list[m.RequestRow]:
    return [row for row in client.ps().requests if row.op == "model.pull"]


def test_what_was_pulled_is_listed_and_loads_under_the_name_that_the_reply_tells(
    client: Client, ollama: OllamaServer
) -> None:
    told: list[m.Progress] = []
    pulled = client.pull(f"box/{CASED}", on_progress=told.append)
    assert ollama.asked("/api/pull")[-1].json["model"] == CASED, "as it was written"
    assert (pulled.model, pulled.path) == ("box/hf.co/org/tiny-gguf:q4_k_m", CASED)
    assert {report.phase for report in told} == {"pulling"}
    assert any(report.fraction == 1.0 for report in told)
    assert client.switch(pulled.model).model == pulled.model
    assert ollama.asked("/api/generate")[-1].json["model"] == CASED
    assert client.pull("box/fresh").model == "box/fresh:latest", "with the tag that the server adds"


def test_the_error_for_a_model_that_is_not_there_says_how_to_get_it(client: Client) -> None:
    with pytest.raises(H2qError) as caught:
        client.load("box/llama3.2:3b")
    assert (caught.value.code, caught.value.hint) == ("no_such_model", "h2qctl pull box/llama3.2:3b")
    with pytest.raises(H2qError) as caught:
        client.load("box/$(reboot)")
    assert "reboot" not in caught.value.hint
    with pytest.raises(H2qError) as caught:
        client.load("lab/gpt-5")
    assert "pull" not in caught.value.hint
    client.pull("box/llama3.2:3b")
    assert client.load("box/llama3.2:3b").changed


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("bax/small", "invalid_request", "no remote bax|box, few, lab|h2qctl pull box/small"),
        ("small", "invalid_request", "say which server|box, few, lab|h2qctl config"),
        ("few/other", "invalid_request", "not be offered|remotes.few.models"),
        ("lab/gpt-5", "unsupported", "lab is no Ollama"),
        ("box/absent", "remote_failed", "file does not exist"),
    ],
)
def test_what_cannot_be_pulled_says_why(client: Client, name: str, code: str, says: str) -> None:
    with pytest.raises(H2qError) as caught:
        client.pull(name)
    assert caught.value.code == code
    told = " ".join((caught.value.message, *caught.value.because, caught.value.hint))
    assert [words for words in says.split("|") if words not in told] == [], told


def test_who_asks_for_the_same_joins_and_a_last_one_that_leaves_ends_it(
    daemon: DaemonProcess, client: Client, ollama: OllamaServer
) -> None:
    before = len(ollama.asked("/api/pull"))
    ollama.fail("/api/pull", slowly)
    first = background(lambda: daemon.client().pull("box/big"))
    assert ollama.wait_asked("/api/pull", before + 1)
    second = background(lambda: daemon.client().pull("box/Big:latest"))
    await_true(lambda: len(pulling(client)) == 2, "both wait")
    zygote = psutil.Process(daemon.zygote_pid())
    (worker,) = zygote.children()
    for future, row in zip((first, second), pulling(client), strict=True):
        assert worker.is_running(), "the other still waits"
        client.cancel(row.request)
        assert code_of(future) == "cancelled"
    await_true(lambda: not zygote.children(), "the worker is gone")
    assert ollama.wait_connections(0), "and with it the server's fetching"
    assert len(ollama.asked("/api/pull")) == before + 1
    assert client.pull("box/big").model == "box/big:latest"


def test_a_pull_ends_at_its_deadline(client: Client, ollama: OllamaServer) -> None:
    ollama.fail("/api/pull", slowly)
    with pytest.raises(H2qError) as caught:
        client.pull("box/big", timeout=0.5)
    assert caught.value.code == "deadline_exceeded"
    assert ollama.wait_connections(0)


def test_a_pull_ends_with_the_daemon(tmp_path: Path, ollama: OllamaServer) -> None:
    before = len(ollama.asked("/api/pull"))
    ollama.fail("/api/pull", slowly)
    with running(tmp_path, extra=f"remotes:\n  box: {{type: ollama, url: '{ollama.url}'}}\n") as daemon:
        under_way = background(lambda: daemon.client().pull("box/other"))
        assert ollama.wait_asked("/api/pull", before + 1)
        assert daemon.stop() == 0
        assert code_of(under_way) == "shutting_down"
    assert ollama.wait_connections(0)


def test_there_are_only_so_many_at_a_time(daemon: DaemonProcess, client: Client, ollama: OllamaServer) -> None:
    before = len(ollama.asked("/api/pull"))
    ollama.fail("/api/pull", slowly, PULLS_MAX)
    under_way = [background(partial(daemon.client().pull, f"box/m{n}")) for n in range(PULLS_MAX)]
    assert ollama.wait_asked("/api/pull", before + PULLS_MAX)
    with pytest.raises(H2qError) as caught:
        client.pull("box/m5")
    assert caught.value.code == "queue_full"
    for row in pulling(client):
        client.cancel(row.request)
    assert [code_of(future) for future in under_way] == ["cancelled"] * PULLS_MAX


def test_at_a_terminal_ctrl_c_ends_it(daemon: DaemonProcess, ollama: OllamaServer) -> None:
    before = len(ollama.asked("/api/pull"))
    done = tool(str(daemon.socket), "pull", "box/new:1b")
    assert (done.returncode, done.stdout) == (0, "box/new:1b: pulled (gemma3 Q4_K_M, 300 MiB)\n")
    ollama.fail("/api/pull", slowly)
    process = begin(str(daemon.socket), "pull", "box/big")
    assert process.stderr is not None
    assert process.stderr.readline() == "pulling box/big\n"
    assert ollama.wait_asked("/api/pull", before + 2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert ollama.wait_connections(0)


def test_a_list_from_before_a_pull_does_not_undo_it(tmp_path: Path) -> None:
    """The server is asked for its list while a pull goes on, and answers that old list only afterwards."""
    late = asyncio.Event()

    async def old_list(_: Request, response: Response) -> None:
        listed = [{"name": "small:latest", "size": 1}]
        await late.wait()
        await response.whole(200, {"models": listed})

    with OllamaServer(Model("small:latest")) as ollama:
        remotes = f"remotes:\n  box: {{type: ollama, url: '{ollama.url}', refresh: 1s}}\n"
        with running(tmp_path, extra=remotes) as daemon:
            client = daemon.client()
            await_true(lambda: names(client) == {"box/small:latest"}, "listed")
            asked = len(ollama.asked("/api/tags"))
            ollama.fail("/api/tags", old_list)
            assert ollama.wait_asked("/api/tags", asked + 1)
            assert client.pull("box/new").model == "box/new:latest"
            asked = len(ollama.asked("/api/tags"))
            ollama.call(late.set)
            assert ollama.wait_asked("/api/tags", asked + 1)
            assert "box/new:latest" in names(client)
