"""What names of servers' models mean, and how long anybody waits for a server; no process, no socket."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from h2qd.config.schema import Remote
from h2qd.core.records import Fault
from h2qd.runtime.elsewhere import Elsewhere
from h2qd.runtime.refusal import Refusal
from h2qd.runtime.remotes import Remotes, local_name
from h2qd.runtime.targets import Targets
from h2qd.store.registry import Manifest
from h2qd.wire.workers import Listed, RemoteModel


class Unreachable:
    """Errands to a server that is not there, until it is: `models` is what it has then."""

    def __init__(self) -> None:
        self.models: list[str] | None = None
        self.defect: Exception | None = None

    async def run(self, _order: Any, label: str, _answer: type[Listed], _progress: Callable[[float], None]) -> Listed:
        defect, self.defect = self.defect, None
        if defect is not None:
            raise defect
        if self.models is None:
            raise Refusal(Fault("remote_unreachable", f"cannot connect to {label}"))
        return Listed([RemoteModel(name) for name in self.models])


def remotes(errands: Unreachable, **fields: Any) -> tuple[Remotes, dict[str, Manifest]]:
    manifests: dict[str, Manifest] = {}

    def put(manifest: Manifest) -> None:
        manifests[manifest.name] = manifest

    targets = Targets({"box": Remote(type="ollama", url="http://127.0.0.1:1", **fields)}, lambda: False)
    told = (put, manifests.pop, lambda _name, _fault: None)
    elsewhere = Elsewhere(manifests, dict)
    return Remotes(targets, errands, elsewhere, {}, manifests, {}, *told), manifests  # type: ignore[arg-type]


def test_a_server_that_does_not_come_is_waited_for_so_long_and_one_that_came_not_at_all() -> None:
    async def scenario() -> None:
        errands = Unreachable()
        them, manifests = remotes(errands, refresh_s=0.01)
        following = asyncio.create_task(them.follow("box"))
        await them.looked(["box/a"])
        assert not await them.answered("box", 0.01)
        errands.models = ["a:1b"]
        assert await them.answered("box", 20)
        assert list(manifests) == ["box/a:1b"]
        errands.models = None
        assert await them.answered("box", 0), "it did answer once"
        following.cancel()
        await asyncio.wait([following])

    asyncio.run(scenario())


def test_a_defect_costs_one_look_at_a_server() -> None:
    async def scenario() -> None:
        errands = Unreachable()
        errands.models, errands.defect = ["a:1b"], ValueError("a defect")
        them, manifests = remotes(errands, refresh_s=0.01)
        following = asyncio.create_task(them.follow("box"))
        await them.looked(["box/a"])
        assert manifests == {}
        assert await them.answered("box", 20)
        following.cancel()
        await asyncio.wait([following])

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("box/a:latest", "box/a:latest"),
        ("box/a", "box/a:latest"),
        ("box/A", "box/a:latest"),
        ("box/hf.co/Org/B:Q4", "box/hf.co/org/b:q4"),
        ("box/hf.co/Org/C:Q4", "box/c"),
        ("box/c", "box/c"),
        ("box/d", "box/d"),
        ("lab/a", "lab/a"),
        ("a", "a"),
        ("", ""),
    ],
)
def test_what_a_user_may_call_a_model(asked: str, name: str) -> None:
    them, _ = remotes(Unreachable(), aliases=(("c", "hf.co/org/c:q4"),))
    them.learn("box", Listed([RemoteModel(name) for name in ("a:latest", "hf.co/Org/B:Q4", "hf.co/Org/C:Q4")]))
    assert them.called(asked) == name


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("llama3.2:3b", "box/llama3.2:3b"),
        ("hf.co/Org/Ünique_Name-GGUF:Q4_K_M", "box/hf.co/org/nique_name-gguf:q4_k_m"),
        ("../../etc", "box/etc"),
        ("a..b", "box/a.b"),
    ],
)
def test_a_servers_name_becomes_one_of_ours(theirs: str, ours: str) -> None:
    assert local_name("box", theirs) == ours
