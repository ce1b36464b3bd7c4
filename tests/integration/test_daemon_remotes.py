"""Models of servers as residents: listed, switched to and away from, paid for in memory; and no trace of keys."""

import http.client
import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from h2qctl import Client, H2qError
from tests.harness import DaemonProcess, await_true, config_text, running, script, started
from tests.peers.ollama_server import MIB, Model, OllamaServer
from tests.peers.openai_server import OpenAIServer

KEY = "sk-0123456789abcdef-very-secret"
CHAT = [{"role": "user", "content": "hello there"}]


@contextmanager
def served(folder: Path, remotes: str, extra: str = "", key: str = KEY) -> Iterator[DaemonProcess]:
    config = folder / "h2qd.yaml"
    local = config_text({"local": script(folder, "local", tokens=["local"], memory_bytes=32 * MIB)}, extra)
    config.write_text(f"{local}remotes:\n{remotes}")
    with started(folder, config, {"LAB_KEY": key}) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def ollama() -> Iterator[OllamaServer]:
    with OllamaServer(Model("small:latest", size=40 * MIB), Model("big/other:q4", size=60 * MIB)) as peer:
        yield peer


@pytest.fixture(scope="module")
def openai() -> Iterator[OpenAIServer]:
    with OpenAIServer("gpt-small", key=KEY) as peer:
        yield peer


@pytest.fixture(scope="module")
def daemon(
    tmp_path_factory: pytest.TempPathFactory, ollama: OllamaServer, openai: OpenAIServer
) -> Iterator[DaemonProcess]:
    remotes = (
        f"  box: {{type: ollama, url: '{ollama.url}', refresh: 1s}}\n"
        f"  lab: {{type: openai, url: '{openai.url}', key_env: LAB_KEY, refresh: 1s}}\n"
        f"  off: {{type: openai, url: 'http://127.0.0.1:9/v1'}}\n"
        f"  mute: {{type: openai, url: '{openai.url}', key_env: NO_SUCH_KEY}}\n"
    )
    with served(tmp_path_factory.mktemp("remotes"), remotes) as daemon:
        client = daemon.client()
        await_true(
            lambda: {"box/small:latest", "lab/gpt-small", "off/*", "mute/*"} <= names(client), "all are listed"
        )
        yield daemon


@pytest.fixture
def client(daemon: DaemonProcess) -> Client:
    return daemon.client()


def names(client: Client) -> set[str]:
    return {row.name for row in client.models().models}


def test_what_servers_have_is_in_the_list_under_their_names(client: Client) -> None:
    rows = {row.name: row for row in client.models().models}
    assert {name: row.type for name, row in rows.items()} == {
        "local": "local",
        "box/small:latest": "ollama",
        "box/big/other:q4": "ollama",
        "lab/gpt-small": "openai",
        "off/*": "openai",
        "mute/*": "openai",
    }
    assert rows["box/small:latest"].size_bytes == 40 * MIB
    assert not rows["off/*"].available
    assert "NO_SUCH_KEY" in rows["mute/*"].reason
    for name, reason in (("off/any", "cannot connect"), ("mute/any", "NO_SUCH_KEY")):
        with pytest.raises(H2qError, match=reason) as raised:
            client.load(name)
        assert raised.value.code == "remote_unreachable"
    doctor = {check.name: check.verdict for check in client.doctor().checks}
    assert "model lab/gpt-small" not in doctor
    assert doctor["remote lab"] == doctor["remote box"] == "ok"


def test_a_switch_in_any_direction_frees_what_the_other_held(client: Client, ollama: OllamaServer) -> None:
    assert client.switch("local").model == "local"
    there = client.switch("box/small:latest")
    assert [gone.model for gone in there.unloaded] == ["local"]
    assert there.memory_bytes >= 40 * MIB, "what the server took of this device is in the ledger"
    assert "small:latest" in ollama.loaded
    away = client.switch("lab/gpt-small")
    assert ollama.loaded == {}, "it was unloaded there"
    (released,) = away.unloaded
    assert released.held_bytes >= 40 * MIB
    assert released.freed_bytes >= 40 * MIB, "and that was proved"
    assert client.status().resident == ["lab/gpt-small"]
    back = client.switch("local")
    assert [gone.model for gone in back.unloaded] == ["lab/gpt-small"]
    assert client.infer("x", "local").text == "local"


@pytest.mark.parametrize("name", ["box/small:latest", "lab/gpt-small"])
def test_a_chat_is_answered_and_streamed(client: Client, name: str) -> None:
    with client.chat(CHAT, name, max_tokens=16, stream=True) as stream:
        text = "".join(stream)
        assert stream.answer is not None
    assert text == "tok0 tok1 tok2 tok3 "
    assert (stream.answer.model, stream.answer.finish) == (name, "stop")
    assert stream.answer.usage.completion_tokens == 4
    assert client.chat(CHAT, name, max_tokens=16).text == text


def test_a_model_that_is_gone_there_is_gone_here_and_comes_back(client: Client, ollama: OllamaServer) -> None:
    client.switch("local")
    kept = ollama.models.pop("big/other:q4")
    await_true(lambda: "box/big/other:q4" not in names(client), "it is noticed")
    with pytest.raises(H2qError) as raised:
        client.load("box/big/other:q4")
    assert raised.value.code == "no_such_model"
    ollama.models["big/other:q4"] = kept
    await_true(lambda: "box/big/other:q4" in names(client), "it is noticed")
    assert client.switch("box/big/other:q4").model == "box/big/other:q4"


def test_a_server_that_loses_the_model_behind_our_back_is_believed(client: Client, ollama: OllamaServer) -> None:
    client.switch("box/small:latest")
    ollama.expire("small:latest")

    def held() -> int:
        return next(row.size_bytes or 0 for row in client.ps().models)

    await_true(lambda: held() < 40 * MIB, "the ledger is told")


def test_what_others_load_at_a_server_of_this_device_is_told(client: Client, ollama: OllamaServer) -> None:
    def told() -> list[str]:
        return [line for line in client.status().degraded if line.startswith("box holds")]

    def another_user(**fields: object) -> None:
        body = json.dumps({"model": "big/other:q4", "prompt": "", "stream": False, **fields}).encode()
        with closing(http.client.HTTPConnection("127.0.0.1", ollama.port, timeout=20)) as connection:
            connection.request("POST", "/api/generate", body)
            assert connection.getresponse().status == http.client.OK

    for ours in ("local", "box/small:latest"):
        client.switch(ours)
        another_user()
        await_true(
            lambda: told() == ["box holds 60 MiB of this device for models that others loaded there"], "it is seen"
        )
        another_user(keep_alive=0)
        await_true(lambda: not told(), "it is gone")


def test_a_remote_that_does_not_come_up_costs_nothing(client: Client, tmp_path: Path, openai: OpenAIServer) -> None:
    with served(tmp_path, f"  lab: {{type: openai, url: '{openai.url}', key_env: LAB_KEY}}\n") as daemon:
        own = daemon.client()
        await_true(lambda: "lab/gpt-small" in names(own), "it is listed")
        own.switch("local")
        openai.key, kept = "another", openai.key
        try:
            with pytest.raises(H2qError):
                own.switch("lab/gpt-small")
        finally:
            openai.key = kept
        assert own.infer("x").text == "local", "who was resident is resident again"
    assert client.status().phase == "serving"


def test_a_chosen_name_stands_for_a_long_one(tmp_path: Path) -> None:
    long = "hf.co/Org/Tiny-GGUF:Q4_K_M"
    with OllamaServer(Model("small:latest"), Model(long), Model("tiny:latest")) as peer:
        aliases = f"{{tiny: '{long}', 'tiny:latest': small, absent: 'Gone:1b'}}"
        with served(tmp_path, f"  box: {{type: ollama, url: '{peer.url}', aliases: {aliases}}}\n") as daemon:
            own = daemon.client()
            await_true(lambda: "box/tiny" in names(own), "it is listed")
            assert names(own) == {"local", "box/tiny", "box/tiny:latest"}, "instead; who was named first has the name"
            assert own.switch("box/tiny").model == "box/tiny"
            assert list(peer.loaded) == [long]
            assert not own.load(f"box/{long}").changed, "the long name means the same model"
            assert own.show("box/tiny:latest").model.path == "small:latest"
            with pytest.raises(H2qError) as caught:
                own.load("box/absent")
            assert caught.value.hint == "h2qctl pull box/absent"
            assert own.pull("box/absent").path == "Gone:1b", "a pull is told the server's own name"
            assert own.load("box/absent").changed


def test_a_server_is_told_the_context_of_its_model(tmp_path: Path) -> None:
    extra = "model: {slots: 2, ctx: 1024}\n"
    models = "  box/small: {ctx: 512, fallback: [box/other]}\n"
    with OllamaServer(Model("small:latest"), Model("other:latest", context_length=600)) as peer:
        folder = tmp_path / "h2qd.yaml"
        local = config_text({"local": script(tmp_path, "local")}, extra)
        folder.write_text(f"{local}{models}remotes:\n  box: {{type: ollama, url: '{peer.url}'}}\n")
        with started(tmp_path, folder) as daemon:
            own = daemon.client()
            await_true(lambda: "box/small:latest" in names(own), "it is listed")

            def told() -> list[int]:
                return [one.num_ctx for one in peer.loaded.values()]

            assert own.load("box/small").ctx == 512, "also without the tag, here and in the configuration"
            assert told() == [512], "of each request, however many there are"
            again = own.load("box/small:latest", ctx=2000)
            assert (again.ctx, again.changed, told()) == (2000, True, [2000])
            assert own.infer("x", "box/small", max_tokens=2).model == "box/small:latest"
            assert peer.asked("/api/generate")[-1].json["options"]["num_ctx"] == 2000
            assert not own.load("box/small", ctx=2000).changed
            assert own.load("box/other").ctx == 600, "no more than it was made for"
            del peer.models["small:latest"]
            fell = own.infer("x", "box/small", max_tokens=2)
            assert (fell.model, fell.instead_of) == ("box/other:latest", "box/small:latest")


def test_a_key_that_others_can_read_on_the_way_is_told_of(tmp_path: Path, openai: OpenAIServer) -> None:
    keyed = "type: openai, key_env: LAB_KEY, connect_timeout: 100ms"
    remotes = (
        f"  plain: {{{keyed}, url: 'http://192.0.2.1/v1'}}\n"
        f"  sealed: {{{keyed}, url: 'https://192.0.2.1/v1'}}\n"
        f"  open: {{type: openai, connect_timeout: 100ms, url: 'http://192.0.2.1/v1'}}\n"
        f"  lab: {{{keyed}, url: '{openai.url}'}}\n"
    )
    with served(tmp_path, remotes) as daemon:
        own = daemon.client()
        await_true(lambda: "plain/*" in names(own), "it was tried")
        assert [row for row in own.status().degraded if "plain text" in row] == [
            "the key of plain travels in plain text: its url is not https"
        ]
        plain = [check for check in own.doctor().checks if check.name == "remote plain"]
        assert [check.verdict for check in plain] == ["fail", "warn"]
        assert "remotes.plain" in plain[0].fix
        assert plain[1].fix == "use https in remotes.plain.url"
        assert [entry["remote"] for entry in daemon.log("remote.key_in_plain")] == ["plain"]


def test_what_speaks_to_servers_is_imported_beforehand_only_where_there_are_some(
    client: Client, daemon: DaemonProcess, tmp_path: Path
) -> None:
    assert "httpcore2" in client.version().libraries
    assert psutil.Process(daemon.zygote_pid()).num_threads() == 1, "threads would not survive a fork"
    with running(tmp_path) as without:
        await_true(lambda: "python" in without.client().version().libraries, "the zygote is ready")
        assert "httpcore2" not in without.client().version().libraries


def test_no_key_is_anywhere(client: Client, daemon: DaemonProcess) -> None:
    client.chat(CHAT, "lab/gpt-small", max_tokens=4)
    told = [
        client.config(),
        client.models(),
        client.ps(),
        client.doctor(),
        client.status(),
        client.explain("lab/gpt-small"),
    ]
    assert KEY not in "".join(map(repr, told))
    for path in daemon.folder.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path
    for process in daemon.tree():
        assert KEY not in " ".join(process.cmdline())
    assert os.environ.get("LAB_KEY") is None
