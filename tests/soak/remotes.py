"""From the device to a server to another and back, again and again, while servers and workers fail in every way.

Each step is a switch and a chat, some of them under a fault of a seeded list. Whatever came of it, what the daemon
says that is held must be what is held then: by its workers (PSS) and by the server (/api/ps). A server that was away
must be found back, and the next step must work. In the end nothing may be left: no process, descriptor, connection or
memory, and no key in anything that was written or said. Called by the short test beside this module and by
`python -m tests.soak`.
"""

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from h2qctl import Client, H2qError
from tests.harness import DaemonProcess, await_true, config_text, script, started
from tests.oracle import pss_bytes
from tests.peers.http_server import Request, Response
from tests.peers.ollama_server import MIB, Model, OllamaServer
from tests.peers.openai_server import OpenAIServer
from tests.soak.cycles import held

KEY = "sk-soak-0123456789abcdef-very-secret"
ROUND = ("local", "box/small:latest", "lab/gpt-small")
HELD_BYTES = 64 * MIB
"""What the scripted model takes here, and the server's there."""

UNEVEN_BYTES = 28 * MIB
"""How far the ledger may be from the sum of the workers' PSS, that shares pages with the process they come from."""

_CHAT = [{"role": "user", "content": "hello there"}]
_FAULT_SHARE = 0.4
_ENDS = {
    "remote_unreachable",
    "remote_failed",
    "generation_failed",
    "queue_full",
    "model_failed",
    "worker_crashed",
    "load_failed",
    "timeout",
    "deadline_exceeded",
}
_ASKED = {
    "box": ("/api/chat", "/api/chat", "/api/generate", "/api/ps", "/api/show", "/api/tags"),
    "lab": ("/v1/chat/completions", "/v1/chat/completions", "/v1/models"),
}
_PATIENCE_S = 8.0
"""Of who asks: a server that is silent while it loads may be left to it for minutes."""
_LEFT_S = 20.0

Peer: TypeAlias = OllamaServer | OpenAIServer


@dataclass
class Journey:
    """What a run found. `outcomes` counts the steps by fault and end."""

    rounds: int
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    took_s: float = 0.0

    def fault(self) -> str:
        """What is wrong, in words; empty when nothing is."""
        if self.faults:
            return "; ".join(self.faults[:5])
        return "" if self.before == self.after else f"{self.before} became {self.after}"

    def __str__(self) -> str:
        ends = ", ".join(f"{name} {count}" for name, count in sorted(self.outcomes.items()))
        return f"{self.rounds} rounds in {self.took_s:.0f} s: {ends}; {self.after}"


@dataclass
class Scene:
    """The daemon, its two servers, and all that was said to who asked."""

    daemon: DaemonProcess
    box: OllamaServer
    lab: OpenAIServer
    said: list[str] = field(default_factory=list)

    def peer(self, name: str) -> Peer | None:
        """The server of a model."""
        peers: dict[str, Peer] = {"box": self.box, "lab": self.lab}
        return peers.get(name.partition("/")[0])


@contextmanager
def served(folder: Path) -> Iterator[Scene]:
    """A daemon with a model of its own and one at each of two servers."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        box = stack.enter_context(OllamaServer(Model("small:latest", size=HELD_BYTES)))
        lab = stack.enter_context(OpenAIServer("gpt-small", key=KEY))
        times = "connect_timeout: 1s, read_timeout: 1s, refresh: 1h"
        local = config_text({"local": script(folder, "local", tokens=["local"], memory_bytes=HELD_BYTES)})
        config = folder / "h2qd.yaml"
        config.write_text(
            f"{local}failures: {{backoff_max: 2s}}\nremotes:\n  box: {{type: ollama, url: '{box.url}', {times}}}\n"
            f"  lab: {{type: openai, url: '{lab.url}', key_env: LAB_KEY, {times}}}\n"
        )
        with started(folder, config, {"LAB_KEY": KEY}) as daemon:
            client = daemon.client()
            await_true(lambda: {row.name for row in client.models().models} >= set(ROUND), "all models are listed")
            yield Scene(daemon, box, lab)


def run(scene: Scene, rounds: int, seed: int, told: Callable[[str], None]) -> Journey:
    """Go round so many times, after once that does not count."""
    journey, chance = Journey(rounds), random.Random(seed)
    client = scene.daemon.client()
    for name in ROUND:
        _step(scene, client, name)
    _rest(scene, client)
    journey.before, began = _held(scene), time.monotonic()
    for number in range(rounds):
        for name in ROUND:
            fault = chance.choice(_faults(name)) if chance.random() < _FAULT_SHARE else "none"
            end = _faulty(scene, client, name, fault, chance)
            journey.outcomes[f"{fault}: {end}"] += 1
            if (fault == "none" and end != "ok") or end not in _ENDS | {"ok"}:
                journey.faults.append(f"round {number}, {name}, {fault}: {end}")
            with _noted(journey, f"round {number}, {name}, {fault}"):
                _recover(scene, client)
                _compare(scene, client)
        if number % 10 == 9:
            told(f"{number + 1} of {rounds} rounds")
    journey.took_s = time.monotonic() - began
    _rest(scene, client)
    journey.after = _held(scene)
    with _noted(journey, "in the end"):
        assert scene.box.wait_connections(0), "connections to box are open"
        assert scene.lab.wait_connections(0), "connections to lab are open"
        assert not (found := list(_keys(scene, client))), f"the key is in {found}"
    return journey


@contextmanager
def _noted(journey: Journey, where: str) -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        journey.faults.append(f"{where}: {error}")


# --- a step, and what goes wrong in it ---------------------------------------------------------------------------


def _step(scene: Scene, client: Client, name: str) -> str:
    """A switch and a chat; how it ended."""
    try:
        scene.said.append(repr(client.switch(name, reset=True, timeout=_PATIENCE_S)))
        answer = client.chat(_CHAT, name, max_tokens=4) if "/" in name else client.infer("x", name)
    except H2qError as error:
        scene.said.append(repr(error.reply))
        return error.code
    scene.said.append(repr(answer))
    return "ok" if answer.text in ("local", "tok0 tok1 tok2 tok3 ") else f"said {answer.text!r}"


def _faults(name: str) -> list[str]:
    if name == "local":
        return ["worker killed"]
    more = ["unloaded there"] if name.startswith("box/") else []
    return ["refuses", "resets", "hangs", "answers 500", "garbage", "killed midway", "worker killed", *more]


def _faulty(scene: Scene, client: Client, name: str, fault: str, chance: random.Random) -> str:
    """A step under a fault."""
    peer = scene.peer(name)
    if fault == "worker killed":
        _step(scene, client, name)
        os.kill(scene.daemon.worker_pid(name), signal.SIGKILL)
        await_true(lambda: all(row.name != name for row in client.ps().models), "its end is noticed")
    elif fault == "unloaded there":
        _step(scene, client, name)
        scene.box.expire("small:latest")
    elif peer is None or fault == "none":
        pass
    elif fault == "refuses":
        _go_away(peer)
    elif fault == "killed midway":
        _step(scene, client, name)
        peer.midway = (2, _silent_midway)
        asked = len(peer.requests)
        killer = threading.Thread(target=_kill_when_asked, args=(peer, asked))
        killer.start()
        end = _step(scene, client, name)
        killer.join()
        return end
    else:
        path = chance.choice(_ASKED[name.partition("/")[0]])
        peer.fail(path, _HANDLERS[fault], 1 if fault == "hangs" else chance.choice([1, 2, 6]))
    return _step(scene, client, name)


def _kill_when_asked(peer: Peer, asked: int) -> None:
    await_true(lambda: any(r.path.endswith(("/chat", "/completions")) for r in peer.requests[asked:]), "it is asked")
    _go_away(peer)


def _go_away(peer: Peer) -> None:
    peer.go_away()
    if isinstance(peer, OllamaServer):
        peer.loaded = {}  # as in a process that is gone


async def _silent_midway(_: object, response: Response) -> None:
    await response.silence()


async def _reset(_: Request, response: Response) -> None:
    response.reset()


async def _hang(_: Request, response: Response) -> None:
    await response.silence()


async def _broken(request: Request, response: Response) -> None:
    """Servers like to quote what they were sent."""
    await response.whole(500, {"error": f"it is broken, {request.headers}"})


async def _garbage(_: Request, response: Response) -> None:
    await response.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n" + b"\xff\x00{]" * 8)


_HANDLERS = {"resets": _reset, "hangs": _hang, "answers 500": _broken, "garbage": _garbage}


# --- what must be so after each ----------------------------------------------------------------------------------


def _recover(scene: Scene, client: Client) -> None:
    """The servers are well again; the daemon finds that out by itself."""
    for peer in (scene.box, scene.lab):
        peer.faults.clear()
        peer.midway = None
        if not peer.listens:
            peer.come_back()

    def closed() -> bool:
        return all(row.breaker == "closed" for row in client.status().servers)

    await_true(closed, "servers that are back are found back")


def _compare(scene: Scene, client: Client) -> None:
    """What the daemon says is held is held."""

    def agrees() -> str:
        ps, status, top = client.ps(), client.status(), client.top()
        workers = {row.pid for row in ps.models if row.pid is not None}
        main, zygote = scene.daemon.process.pid, scene.daemon.zygote_pid()
        processes = {process.pid for process in scene.daemon.tree()} - {main, zygote}
        there = sum(one.model.size for one in scene.box.loaded.values())
        told = [sum(row.size_bytes or 0 for row in ps.models), status.memory.held_bytes]
        told.append(sum(row.held_bytes for row in top.workers))
        real = there + sum(pss_bytes(pid) for pid in workers)
        if processes != workers:
            return f"processes {processes}, of which {workers} are told"
        if len(ps.models) > 1 or [row.name for row in ps.models] != status.resident:
            return f"{[(row.name, row.state) for row in ps.models]} hold memory, and {status.resident} are resident"
        if any(abs(size - real) > UNEVEN_BYTES for size in told):
            return f"{told} bytes are told, {real} are held, {there} of them there"
        return ""

    deadline_s = time.monotonic() + _LEFT_S
    while fault := agrees():
        assert time.monotonic() < deadline_s, fault
        time.sleep(0.02)  # between two questions: what a server lets go by itself is looked at now and then


def _rest(scene: Scene, client: Client) -> None:
    for name in ROUND:
        with contextlib.suppress(H2qError):
            client.unload(name)
    await_true(lambda: client.ps().models == [], "nothing holds memory")
    assert scene.box.loaded == {}, "the server holds nothing for us"


def _held(scene: Scene) -> dict[str, int]:
    """As for cycles, once it has stayed the same for longer than a tick."""
    seen: list[dict[str, int]] = []

    def still() -> bool:
        seen.append(held(scene.daemon))
        return len(seen) > 150 and all(one == seen[-1] for one in seen[-150:])

    await_true(still, "nothing changes any more", 60)
    return seen[-1]


def _keys(scene: Scene, client: Client) -> Iterator[str]:
    """Where the key can be read."""
    told = [client.config(), client.models(), client.ps(), client.doctor(), client.status(), client.top()]
    told += [client.explain(name) for name in ROUND]
    scene.said += map(repr, told)
    scene.said += map(repr, client.events(since=0, follow=False))
    if KEY in "".join(scene.said):
        yield "replies or events"
    for path in scene.daemon.folder.rglob("*"):
        if path.is_file() and KEY.encode() in path.read_bytes():
            yield str(path)
    for process in scene.daemon.tree():
        if KEY in " ".join(process.cmdline()):
            yield f"the command line of {process.pid}"
