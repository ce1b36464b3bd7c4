"""The models that the configuration names: registered at the start, and later whose file could not be used then.

A disk may be mounted late, and a download end hours after the start. So files that could not be used are looked at
now and then, and tried again once they have changed and rest; what failed through no fault of its file is tried again
less and less often. Called by the daemon, which owns the task. What a registration is, is decided by `imports`.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from h2qd.config.schema import Model
from h2qd.logs import get_logger
from h2qd.runtime import views
from h2qd.runtime.imports import Imports
from h2qd.runtime.refusal import Refusal
from h2qd.store.registry import Manifest
from h2qd.wire import messages as m

log = get_logger()

_LOOK_S = 5.0
_WAIT_MAX = 128
_FAULTS_OF_FILES = frozenset({"file_not_found", "invalid_model_file"})


@dataclass(slots=True, eq=False)
class _Failed:
    """A model that could not be registered: its file's identity as it was then, and as it was last seen.

    `wait`: after so many looks it is tried again, unless its file is at fault.
    """

    code: str
    tried: list[int]
    seen: list[int]
    wait: int = 1
    looks: int = 0

    def is_due(self, identity: list[int]) -> bool:
        """Whether to try again, now that its file's identity is this."""
        rests = identity == self.seen
        self.seen, self.looks = identity, self.looks + 1
        if self.code in _FAULTS_OF_FILES:
            return rests and identity != self.tried
        return self.looks >= self.wait


class Named:
    """Keeps `missing` in step. `models` are those of the configuration; without a path, a server tells of it."""

    def __init__(
        self,
        models: Mapping[str, Model],
        imports: Imports,
        manifests: Mapping[str, Manifest],
        missing: dict[str, m.ModelRow],
        look_s: float = _LOOK_S,
    ) -> None:
        self._models = {name: model for name, model in models.items() if model.path}
        self._imports = imports
        self._manifests = manifests
        self._missing = missing
        self._look_s = look_s
        self._failed: dict[str, _Failed] = {}

    def is_named(self, manifest: Manifest) -> bool:
        """Whether the configuration names a registered model, as it is registered."""
        model = self._models.get(manifest.name)
        return model is not None and model.path == manifest.path and model.backend in (None, manifest.backend)

    async def register(self) -> None:
        """Register all that are not yet, one after the other."""
        for name in self._models:
            known = self._manifests.get(name)
            if known is None or not self.is_named(known):
                await self._try(name)

    async def follow(self) -> None:
        """Try those again that failed, when there is reason to; until none is left."""
        while self._failed:
            await asyncio.sleep(self._look_s)
            for name, failed in list(self._failed.items()):
                if failed.is_due(await self._imports.identity(self._models[name].path)):
                    await self._try(name)

    async def _try(self, name: str) -> None:
        model = self._models[name]
        identity = await self._imports.identity(model.path)
        try:
            await self._imports.run(model.path, name, "config", model.backend, lambda _: None)
        except Refusal as refusal:
            fault = refusal.fault
            row = views.missing_row(name, model.path, fault)
            if self._missing.get(name) != row:
                log.error("model.unavailable", model=name, path=model.path, error=fault.message)  # noqa: TRY400 - expected
            self._missing[name] = row
            wait = min(2 * self._failed[name].wait, _WAIT_MAX) if name in self._failed else 1
            self._failed[name] = _Failed(fault.code, identity, identity, wait)
            return
        self._missing.pop(name, None)
        self._failed.pop(name, None)
