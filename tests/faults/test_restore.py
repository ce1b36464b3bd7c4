"""A daemon that died without a word: the next one has the same models in memory, the same active, the same pinned."""

import json
from pathlib import Path

from h2qctl import Client
from tests.harness import DaemonProcess, alive, await_true, started
from tests.peers.ollama_server import Model, OllamaServer
from tests.pressure import MIB, bounded, model, write_config

MODELS = {name: model(16 * MIB, tokens=3) for name in ("a", "b", "c", "d")}
CONFIG = """
residency: {policy: budget, restore: true}
memory: {model_limit: 120MiB, safety_buffer: 0, working: 64MiB}
"""


def told(client: Client) -> tuple[str | None, set[str], set[str]]:
    """What is active, resident and pinned."""
    rows = [row for row in client.ps().models if row.state == "ready"]
    return client.status().active, {row.name for row in rows}, {row.name for row in rows if row.pinned}


def killed(daemon: DaemonProcess) -> None:
    """SIGKILL once what a client was told of is on the disk, too; all of its processes gone."""
    client = daemon.client()
    active, resident, pinned = told(client)
    file = daemon.folder / "state" / "memory.json"

    def written() -> bool:
        kept = json.loads(file.read_text()) if file.exists() else {"active": None, "resident": [], "pinned": []}
        return (kept["active"], {row["name"] for row in kept["resident"]}, set(kept["pinned"])) == (
            active,
            resident,
            pinned,
        )

    await_true(written, "it is written down", 2)
    family = daemon.tree()
    daemon.kill()
    await_true(lambda: not any(alive(process.pid) for process in family), "all are gone")


def restored(daemon: DaemonProcess, before: tuple[str | None, set[str], set[str]]) -> None:
    """Wait until it is as it was, and see that this is no word only."""
    client = daemon.client()
    await_true(lambda: told(client) == before, f"{before} again")
    assert client.infer("hello").model == before[0]
    for name in before[1]:
        assert not client.load(name).changed
    assert told(client) == before


def test_a_killed_daemon_is_followed_by_one_with_the_same_models(tmp_path: Path) -> None:
    config = write_config(tmp_path, MODELS, CONFIG)
    with started(tmp_path, config) as first:
        client = first.client()
        client.switch("a")
        client.load("b")
        client.pin("b")
        before = told(client)
        assert before == ("a", {"a", "b"}, {"b"})
        killed(first)
    with started(tmp_path, config) as second:
        restored(second, before)
        client = second.client()
        client.unpin("b")
        client.switch("c")
        client.pin("c")
        client.unload("a")
        after = told(client)
        assert after == ("c", {"b", "c"}, {"c"})
        killed(second)
    with started(tmp_path, config) as third:
        restored(third, after)
        assert third.stop() == 0
    with started(tmp_path, config) as fourth:
        restored(fourth, after)


def test_what_no_longer_fits_is_not_forced_in(tmp_path: Path) -> None:
    """Three were resident; the device is smaller now: the active one is there, and nobody waits for the others."""
    config = write_config(tmp_path, MODELS, CONFIG)
    with started(tmp_path, config) as first:
        client = first.client()
        for name in ("a", "b", "c"):
            client.load(name)
        client.switch("b")
        killed(first)
    write_config(tmp_path, MODELS, CONFIG.replace("120MiB", "40MiB"))
    with started(tmp_path, config) as second:
        client = second.client()
        await_true(lambda: told(client) == ("b", {"b"}, set()), "it is the one that counts")
        await_true(lambda: client.status().switch is None and client.status().waiting == 0, "nobody waits")
        assert told(client) == ("b", {"b"}, set())


def test_nothing_is_restored_into_a_device_that_is_full(tmp_path: Path) -> None:
    config = write_config(tmp_path, MODELS, CONFIG + "guard: {warn: 60%, critical: 75%, emergency: 90%, dwell: 1s}")
    with bounded(512 * MIB) as group, group.eater() as eater:
        with started(tmp_path, config, within=group.folder) as first:
            first.client().load("a")
            killed(first)
        eater.fill_to(0.8)
        with started(tmp_path, config, within=group.folder) as second:
            client = second.client()
            assert client.status().memory.level == "critical"
            assert client.ps().models == []
            eater.eat(0)
            await_true(lambda: client.status().memory.level == "normal", "it is over")
            assert client.infer("hello", "a").finish == "stop"


# --- models of a server that comes up later -----------------------------------------------------------------

REMOTE = "model: {{ttl: 0s}}\nremotes:\n  box: {{type: ollama, url: 'http://127.0.0.1:{port}', refresh: 1s}}\n"


def kept_by_a_server(folder: Path, config: Path, peer: OllamaServer) -> None:
    """A daemon that died while a model of `peer` was resident, active and pinned."""
    with started(folder, config) as daemon:
        client = daemon.client()
        await_true(lambda: "box/small:latest" in {row.name for row in client.models().models}, "it is listed")
        client.switch("box/small", ctx=512)
        client.pin("box/small")
        killed(daemon)
    assert list(peer.loaded) == ["small:latest"], "until its lease ends"


def test_a_model_of_a_server_that_comes_up_after_the_daemon_is_there_again(tmp_path: Path) -> None:
    with OllamaServer(Model("small:latest")) as peer:
        config = write_config(tmp_path, MODELS, REMOTE.format(port=peer.port))
        kept_by_a_server(tmp_path, config, peer)
    with started(tmp_path, config) as second:
        client = second.client()
        assert told(client) == (None, set(), set())
        with OllamaServer(Model("small:latest"), port=peer.port) as peer:
            name = "box/small:latest"
            await_true(lambda: told(client) == (name, {name}, {name}), "it is as it was")
            assert peer.loaded["small:latest"].num_ctx == 512
            assert client.infer("hello", max_tokens=2).model == name
            client.unload(force=True)


def test_a_server_that_comes_up_late_takes_nobodys_place(tmp_path: Path) -> None:
    with OllamaServer(Model("small:latest")) as peer:
        config = write_config(tmp_path, MODELS, REMOTE.format(port=peer.port))
        kept_by_a_server(tmp_path, config, peer)
    with started(tmp_path, config) as second:
        client = second.client()
        client.switch("a")
        with OllamaServer(Model("small:latest"), port=peer.port) as peer:

            def pinned() -> bool:
                return "model.pinned" in {notice.event for notice in client.events(0, follow=False)}

            await_true(pinned, "the server is there")
            assert (client.status().switch, client.status().waiting) == (None, 0)
            assert told(client) == ("a", {"a"}, set())
            assert peer.loads == 0
