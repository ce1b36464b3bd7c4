"""Pulls: a server is told to fetch a model, and what it has then is in the list.

Each has a worker of its own (`errands`). Who asks for a model that is on its way joins, and hears the same; when
nobody waits any more the worker ends, and with its connection the server's fetching. Called by `commands`. Decides
nothing about memory: what is pulled lies on the server's disk.
Invariant: a pull goes on exactly while somebody waits for it.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from h2qd.core.records import Fault
from h2qd.logs import get_logger
from h2qd.runtime.errands import Errands
from h2qd.runtime.refusal import Refusal
from h2qd.runtime.remotes import Remotes
from h2qd.runtime.targets import Targets
from h2qd.store.registry import Manifest
from h2qd.wire.names import shown, tagged
from h2qd.wire.workers import Listed, PullModel

log = get_logger()

PULLS_MAX = 4
"""At a time: each has a process, and they share one line to the world."""


@dataclass(slots=True, eq=False)
class _Pull:
    """One model on its way. `told` are those who wait for it."""

    told: list[Callable[[float], None]] = field(default_factory=list)
    task: asyncio.Task[Manifest] | None = None

    def tell(self, fraction: float) -> None:
        for tell in self.told:
            tell(fraction)


class Pulls:
    """Pulls under way, by server and by what that calls the model."""

    def __init__(self, remotes: Remotes, targets: Targets, errands: Errands) -> None:
        self._remotes = remotes
        self._targets = targets
        self._errands = errands
        self._pulls: dict[tuple[str, str], _Pull] = {}

    async def run(self, server: str, model: str, on_progress: Callable[[float], None]) -> Manifest:
        """Have `server` fetch `model`; what it is registered as then.

        Raises `Refusal`: queue_full, remote_unreachable, remote_failed, and how a worker may end.
        """
        key = (server, tagged(model))
        pull = self._pulls.get(key)
        if pull is None:
            if len(self._pulls) >= PULLS_MAX:
                raise Refusal(Fault("queue_full", f"cannot pull {shown(model)}: {PULLS_MAX} pulls are under way"))
            pull = self._pulls[key] = _Pull()
            pull.task = asyncio.get_running_loop().create_task(self._fetched(server, model, pull.tell))
        assert pull.task is not None  # noqa: S101 - made with it
        pull.told.append(on_progress)
        try:
            return await asyncio.shield(pull.task)
        finally:
            pull.told.remove(on_progress)
            if not pull.told:
                del self._pulls[key]
                pull.task.cancel()

    async def _fetched(self, server: str, model: str, on_progress: Callable[[float], None]) -> Manifest:
        order = PullModel(self._targets.of(server), model)
        log.info("pull.began", remote=server, model=shown(model))
        listed = await self._errands.run(order, f"{server}/{shown(model)}", Listed, on_progress)
        self._remotes.learn(server, listed)
        manifest = self._remotes.named(server, model)
        if manifest is None:
            what = f"cannot offer {shown(model)} here: {server} fetched it, and does not list it under that name"
            raise Refusal(Fault("remote_failed", what))
        log.info("pull.done", remote=server, model=manifest.name, bytes=manifest.facts.file_bytes)
        return manifest
