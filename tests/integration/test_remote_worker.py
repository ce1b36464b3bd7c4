"""Workers of remote models as real processes, forked from a zygote, against servers over real sockets."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from h2qd.wire.workers import (
    CancelGeneration,
    FromWorker,
    Generated,
    GenerationFailed,
    HeldElsewhere,
    Listed,
    ListModels,
    Loaded,
    LoadFailed,
    Loading,
    LoadModel,
    Ping,
    Pong,
    PullModel,
    RemoteTarget,
    SavingSessions,
    StopWorker,
    Text,
)
from h2qd.worker.remote.ollama import LEASE_S
from tests.peers.http_server import Request, Response
from tests.peers.ollama_server import MIB, Model, OllamaServer
from tests.peers.openai_server import OpenAIServer
from tests.unit.worker.zygote_peer import REPOSITORY, WorkerPeer, ZygotePeer, ask, zygote

KEY = "sk-proj-0123456789abcdefghij"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZygotePeer]:
    with zygote(tmp_path_factory.mktemp("zygote"), env={"SOME_KEY": KEY}) as peer:
        yield peer


@pytest.fixture
def worker(shared: ZygotePeer) -> Iterator[tuple[WorkerPeer, int]]:
    peer, pid = shared.fork(7)
    with peer:
        yield peer, pid
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    shared.reaped(pid)


@pytest.fixture
def ollama() -> Iterator[OllamaServer]:
    with OllamaServer(Model("small:latest")) as peer:
        yield peer


def target(server: OllamaServer | OpenAIServer, **fields: str | float) -> RemoteTarget:
    kind = "ollama" if isinstance(server, OllamaServer) else "openai"
    return msgspec.convert({"kind": kind, "url": server.url, **fields}, RemoteTarget)


def load(peer: WorkerPeer, remote: RemoteTarget) -> Loaded:
    peer.send(LoadModel(remote.kind, "small", 256, remote=remote))
    return peer.until(Loaded)[0]


def test_load_generate_cancel_and_unload(shared: ZygotePeer, ollama: OllamaServer) -> None:
    peer, pid = shared.fork(1)
    with peer:
        assert load(peer, target(ollama)).elsewhere_bytes == 300 * MIB
        peer.send(ask(1))
        generated, before = peer.until(Generated)
        assert "".join(said.text for said in before if isinstance(said, Text)) == "tok0 tok1 tok2 tok3 "
        assert generated.finish == "stop"
        ollama.word_s = 30
        peer.send(ask(2), Ping(1))
        pong, _ = peer.until(Pong)
        assert pong.busy
        peer.send(CancelGeneration(2))
        assert peer.until(Generated)[0].finish == "cancelled"
        peer.send(StopWorker(save=True))
        assert peer.rest() == [SavingSessions(1), HeldElsewhere(0)]
    assert shared.reaped(pid).status == 0
    assert ollama.loaded == {}
    assert ollama.wait_connections(0)


def test_a_worker_that_must_stop_at_once_lets_the_model_go_all_the_same(
    shared: ZygotePeer, ollama: OllamaServer
) -> None:
    peer, pid = shared.fork(1)
    with peer:
        load(peer, target(ollama))
        ollama.word_s = 0.01
        ollama.words = ["word "] * 10_000
        peer.send(ask(1, max_tokens=10_000))
        peer.until(Text)
        peer.send(StopWorker())
        peer.rest()
    assert shared.reaped(pid).status == 0
    assert ollama.wait_asked("/api/generate", 3)
    assert ollama.wait_connections(0)
    ollama.call(lambda: None)
    assert ollama.loaded == {}


def test_a_worker_that_is_killed_leaves_the_model_there_for_a_while_only(
    shared: ZygotePeer, ollama: OllamaServer
) -> None:
    peer, pid = shared.fork(1)
    with peer:
        load(peer, target(ollama))
        os.kill(pid, signal.SIGKILL)
        assert shared.reaped(pid).status == -signal.SIGKILL
    assert ollama.wait_connections(0)
    assert list(ollama.loaded) == ["small:latest"], "nobody told the server"
    ollama.advance(LEASE_S)
    assert ollama.loaded == {}


def test_a_stop_in_the_middle_of_a_load_leaves_nothing_loaded(shared: ZygotePeer) -> None:
    with OllamaServer(Model("small:latest", load_s=30)) as server:
        peer, pid = shared.fork(1)
        with peer:
            peer.send(LoadModel("ollama", "small", 256, remote=target(server)))
            assert server.wait_asked("/api/generate")
            peer.send(Ping(1), StopWorker())
            (pong,) = peer.rest()
            assert isinstance(pong, Pong)
            assert pong.busy
        assert shared.reaped(pid).status == 0
        assert server.wait_connections(0)
        assert server.loads == 0


def test_an_idle_worker_tells_that_somebody_unloaded_its_model(
    worker: tuple[WorkerPeer, int], ollama: OllamaServer
) -> None:
    peer, _ = worker
    load(peer, target(ollama))
    ollama.expire("small:latest")
    assert peer.receive() == HeldElsewhere(0)


def test_lists_and_pulls_are_jobs(shared: ZygotePeer, ollama: OllamaServer) -> None:
    peer, pid = shared.fork(1)
    with peer:
        peer.send(PullModel(target(ollama), "new:latest"))
        listed, before = peer.until(Listed)
        assert {model.name for model in listed.models} == {"small:latest", "new:latest"}
        assert [said for said in before if isinstance(said, Loading)]
        peer.send(ListModels(target(ollama)))
        assert peer.until(Listed)[0] == listed
        peer.send(StopWorker(save=True))
        assert peer.rest() == []
    assert shared.reaped(pid).status == 0


def test_a_server_that_is_not_there_is_a_failed_load_and_a_clean_exit(shared: ZygotePeer) -> None:
    with OllamaServer() as gone:
        remote = target(gone)
    for order in (LoadModel("ollama", "small", 64, remote=remote), ListModels(remote), PullModel(remote, "small")):
        peer, pid = shared.fork(1)
        with peer:
            peer.send(order)
            (failed,) = peer.rest()
            assert isinstance(failed, LoadFailed)
            assert failed.code == "remote_unreachable"
        assert shared.reaped(pid).status == 0


def test_the_worker_lives_on_without_its_server(worker: tuple[WorkerPeer, int]) -> None:
    peer, _ = worker
    with OllamaServer(Model("small:latest")) as server:
        load(peer, target(server))
    for request in (1, 2):
        peer.send(ask(request))
        assert peer.until(GenerationFailed)[0].code == "remote_unreachable"


_TWO_OF_ONE_USER = """
import ctypes, os
from h2qd.worker.remote.secret import hide_memory
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
ctypes.CDLL(None).prctl(4, 1)  # a change of user hides a process, too
ready, go = os.pipe(), os.pipe()
pid = os.fork()
if pid == 0:
    os.read(go[0], 1)
    hide_memory()
    os.write(ready[1], b"x")
    os.read(go[0], 1)
    os._exit(0)
def readable():
    try:
        return len(open(f"/proc/{pid}/environ", "rb").read()) > 0
    except PermissionError:
        return False
before = readable()
os.write(go[1], b"x"); os.read(ready[0], 1)
print(before, readable())
os.write(go[1], b"x"); os.waitpid(pid, 0)
"""


@pytest.mark.root
def test_memory_and_environment_are_hidden_from_the_users_other_processes() -> None:
    if os.getuid() != 0:
        pytest.skip("a second user is needed: root sees everything")
    told = subprocess.run(
        [sys.executable, "-c", _TWO_OF_ONE_USER], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert told.stdout.split() == ["True", "False"]


def test_the_key_is_in_no_word_of_the_worker(tmp_path: Path) -> None:
    async def quote(request: Request, response: Response) -> None:
        quoted = request.headers["authorization"]
        error = {"message": f"bad: {quoted} {quoted[:20]} {quoted[-12:]}", "code": quoted, "param": quoted}
        await response.whole(400, {"error": error}, Location=quoted, X_Key=quoted)

    async def quote_midway(_: dict[str, object], response: Response) -> None:
        await response.chunk(b'data: {"error":{"message":"' + KEY.encode() + b'"}}\n\n')
        await response.end()

    async def quote_type(_: Request, response: Response) -> None:
        await response.raw(f"HTTP/1.1 2x0 {KEY}\r\n\r\n".encode())

    async def redirect(_: Request, response: Response) -> None:
        await response.whole(302, b"", Location=f"http://elsewhere/?key={KEY}")

    said: list[FromWorker] = []
    with (
        OpenAIServer("small", key=KEY) as server,
        zygote(tmp_path, env={"SOME_KEY": KEY}) as peer_zygote,
    ):
        peer, pid = peer_zygote.fork(1)
        with peer:
            said.append(load(peer, target(server, key_env="SOME_KEY", read_s=0.5)))
            for n, fault in enumerate((quote, quote_type, redirect)):
                server.fail("/v1/completions", fault)
                peer.send(ask(n))
                failed, before = peer.until(GenerationFailed)
                said += [failed, *before]
            server.midway = (1, quote_midway)
            peer.send(ask(9))
            failed, before = peer.until(GenerationFailed)
            said += [failed, *before]
            peer.send(StopWorker())
            peer.rest()
        assert peer_zygote.reaped(pid).status == 0
    log = (tmp_path / "zygote.log").read_text()
    assert KEY[:8] not in repr(said)
    assert KEY[:8] not in log
    assert "Bearer" not in log
