"""A server that goes away: its other models need not find out for themselves, and all are back when it is."""

from collections.abc import Iterator

import pytest

from h2qctl import Client, H2qError
from h2qctl.verbs import explain, models, ps, status
from tests.harness import DaemonProcess, await_true, config_text, script, started
from tests.peers.http_server import Request, Response
from tests.peers.ollama_server import Model, OllamaServer

CHAT = [{"role": "user", "content": "hello there"}]
ONE, OTHER = "box/one:latest", "box/other:latest"


@pytest.fixture(scope="module")
def peer() -> Iterator[OllamaServer]:
    with OllamaServer(Model("one:latest", size=1), Model("other:latest", size=1)) as peer:
        yield peer


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, peer: OllamaServer) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("breakers")
    text = config_text({name: script(folder, name, tokens=[name]) for name in ("local", "stands-in")})
    text = text.replace(
        "/stands-in.json, backend: fake", f"/stands-in.json, backend: fake, fallback: ['{ONE}', local]"
    )
    text += f"remotes:\n  box: {{type: ollama, url: '{peer.url}', read_timeout: 2s}}\n"
    config = folder / "h2qd.yaml"
    config.write_text(text)
    with started(folder, config) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: DaemonProcess, peer: OllamaServer) -> Iterator[Client]:
    with Client(str(daemon.socket)) as client:
        await_true(lambda: client.status().servers == [] and available(client) == {ONE, OTHER}, "the server is there")
        for row in client.ps().models:
            client.unload(row.name)
        yield client
        peer.faults.clear()


def available(client: Client) -> set[str]:
    return {row.name for row in client.models().models if row.type == "ollama" and row.available}


def code_and_wait(client: Client, name: str) -> tuple[str, bool]:
    with pytest.raises(H2qError) as raised:
        client.chat(CHAT, name, max_tokens=4)
    return raised.value.code, (raised.value.retry_after_ms or 0) > 0


def test_its_other_models_are_refused_at_once_until_it_is_back(
    client: Client, peer: OllamaServer, daemon: DaemonProcess
) -> None:
    client.switch(ONE)
    peer.go_away()
    try:
        assert code_and_wait(client, OTHER) == ("remote_unreachable", False), "this one found out"
        workers = len(daemon.log("worker.forked"))
        assert code_and_wait(client, OTHER) == ("remote_unreachable", True)
        assert code_and_wait(client, ONE) == ("remote_unreachable", True)
        assert len(daemon.log("worker.forked")) <= workers + 1, "nothing was started for them, but a look may be"
        (row,) = client.status().servers
        assert (row.name, row.breaker in ("open", "half-open")) == ("box", True)
        assert "Connection refused" in row.reason
        assert any("server box is away" in text for text in client.status().degraded)
        assert available(client) == set()
        told = client.explain(OTHER)
        assert told.server is not None
        assert told.server.retry_after_ms is not None
        assert "server box is away" in "\n".join(status.lines(client.status()))
        assert "cold,away" in "\n".join(models.lines(client.models(), wide=False, width=None))
        assert "box is away" in "\n".join(explain.lines(told, width=None))
    finally:
        peer.come_back()
    await_true(lambda: available(client) == {ONE, OTHER}, "it is found back")
    assert client.status().servers == []
    assert client.chat(CHAT, OTHER, max_tokens=4).text == "tok0 tok1 tok2 tok3 "
    assert [entry["event"] for entry in daemon.log() if entry["event"].startswith("server.")][-2:] == [
        "server.away",
        "server.back",
    ]


def test_a_resident_model_of_it_is_shown_as_away(client: Client, peer: OllamaServer) -> None:
    client.switch("local")
    client.switch(ONE)
    peer.go_away()
    try:
        for _ in range(3):
            with pytest.raises(H2qError):
                client.chat(CHAT, ONE, max_tokens=4)
        (row,) = client.ps().models
        assert (row.name, row.state, row.available) == (ONE, "ready", False)
        assert "server box is away" in row.reason
        assert "ready,away" in "\n".join(ps.lines(client.ps(), wide=False, width=None))
    finally:
        peer.come_back()
    await_true(lambda: available(client) == {ONE, OTHER}, "it is found back")


def test_a_chain_goes_past_it_without_asking_it(client: Client, peer: OllamaServer, daemon: DaemonProcess) -> None:
    broken = script(daemon.folder, "stands-in", load_fail=["load_failed", "it is broken"])
    assert broken.exists()
    peer.go_away()
    try:
        assert code_and_wait(client, ONE)[0] == "remote_unreachable"
        answer = client.infer("x", "stands-in")
        assert (answer.text, answer.instead_of) == ("local", "stands-in")
        fell = daemon.log("request.fell_back")[-1]
        assert (fell["model"], fell["to"]) == (ONE, "local")
        assert "is away" in fell["because"]
    finally:
        peer.come_back()


def test_a_server_that_answers_500_is_left_alone_until_it_is_seen_to_live(client: Client, peer: OllamaServer) -> None:
    async def broken(_: Request, response: Response) -> None:
        await response.whole(500, {"error": "out of order"})

    client.switch(ONE)
    peer.fail("/api/chat", broken, 3)
    peer.fail("/api/version", broken, 1)
    asked = len(peer.asked("/api/chat"))
    for _ in range(3):
        assert code_and_wait(client, ONE)[0] == "generation_failed"
    assert code_and_wait(client, ONE) == ("remote_unreachable", True)
    assert len(peer.asked("/api/chat")) == asked + 3
    await_true(lambda: client.status().servers == [], "a look finds it well")
    assert client.chat(CHAT, ONE, max_tokens=4).text


def test_what_it_refuses_says_nothing_against_it(client: Client, peer: OllamaServer) -> None:
    async def refuses(_: Request, response: Response) -> None:
        await response.whole(400, {"error": "no such field"})

    client.switch(ONE)
    peer.fail("/api/chat", refuses, 6)
    for _ in range(6):
        assert code_and_wait(client, ONE)[0] == "remote_failed"
    assert client.status().servers == []


def test_a_reset_asks_at_once(client: Client, peer: OllamaServer) -> None:
    peer.go_away()
    try:
        assert code_and_wait(client, ONE)[0] == "remote_unreachable"
    finally:
        peer.come_back()
    assert client.load(ONE, reset=True).changed
    assert client.status().servers == []
