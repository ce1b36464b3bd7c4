"""Restoration: after a start, who was active, pinned and, if that is wanted, resident is so again.

What is on this device, and at servers that answer, comes back at once; what a server has that is not up yet, when it
is, within a bounded time, and only beside what came in between. Called by the daemon, once, in two steps. Decides
nothing about memory: each load is a gentle request like any other, for which nobody has to go.
"""

import asyncio
from collections.abc import Container, Iterable
from dataclasses import replace

from h2qd.core.events import PinAsked, Recalled, RequestArrived
from h2qd.core.records import Kept, Ticket, Want
from h2qd.logs import get_logger
from h2qd.runtime.remotes import Remotes
from h2qd.runtime.supervisor import Supervisor
from h2qd.store.registry import Memory

log = get_logger()

SERVERS_S = 120.0
"""How long after a start a server's models may still come back: a machine that boots, or a network that comes up."""

_NOBODY = 0


class Restoration:
    """`manifests` are those registered by now. `loads`: whether models are to be resident again."""

    def __init__(self, supervisor: Supervisor, remotes: Remotes, manifests: Container[str], *, loads: bool) -> None:
        self._supervisor = supervisor
        self._remotes = remotes
        self._manifests = manifests
        self._loads = loads
        self._loop = asyncio.get_running_loop()
        self._numbers = iter(range(-1, -(2**31), -1))  # numbers of calls begin with 1
        self._pinned: list[str] = []
        self._resident: list[Kept] = []

    async def begin(self, memory: Memory) -> None:
        """What is there by now; servers have been asked once before, with whatever success."""
        kept = {one.name for one in memory.resident}
        await self._remotes.looked(kept.union(memory.pinned))
        # The active one comes first: where they do not all fit any more, the others give way.
        wanted = sorted(memory.resident, key=lambda one: one.name != memory.active) if self._may_load() else []
        self._load((one for one in wanted if one.name in self._manifests), None)
        self._supervisor.post(
            Recalled(self._loop.time(), memory.active, tuple(memory.pinned), tuple(memory.resident))
        )
        self._resident = [one for one in wanted if one.name not in self._manifests]
        self._pinned = [name for name in memory.pinned if name not in self._manifests]

    async def finish(self, memory: Memory) -> None:
        """What servers have that did not answer before, if they do within `SERVERS_S`."""
        servers = self._remotes.servers_of({*self._pinned, *(one.name for one in self._resident)})
        await asyncio.gather(*(self._await_server(server, memory.active) for server in servers))

    async def _await_server(self, server: str, active: str | None) -> None:
        if not await self._remotes.answered(server, SERVERS_S):
            log.warning("remote.not_restored", remote=server, why=f"it did not answer within {SERVERS_S:g} s")
            return
        resident = [one for one in self._resident if one.name in self._manifests]
        resident = [one for one in resident if self._remotes.servers_of([one.name]) == {server}]
        self._load(resident, active if self._supervisor.state.active is None else None)
        for name in self._pinned:
            if name in self._manifests and self._remotes.servers_of([name]) == {server}:
                self._supervisor.post(PinAsked(self._loop.time(), _NOBODY, name, pinned=True))

    def _load(self, models: Iterable[Kept], active: str | None) -> None:
        now = self._loop.time()
        for kept in models:
            ticket = Ticket(next(self._numbers), 0, Want.RESIDENT, kept.name, now, ctx=kept.ctx, kv_type=kept.kv_type)
            gentle = replace(ticket, gentle=True, activate=kept.name == active)
            self._supervisor.post(RequestArrived(now, gentle))

    def _may_load(self) -> bool:
        """Whether it is wanted, and nobody was faster."""
        state = self._supervisor.state
        return self._loads and not (state.waiting or state.running or state.switch)
