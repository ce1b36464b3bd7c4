"""Registration: a model file is checked and hashed by a worker, then written to the registry and told to the core.

The supervisor itself never reads a model file. One import at a time; the others wait in line. Used for
`model.import` and, at start, for the models that the configuration names.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor

from h2qd.core.records import Fault
from h2qd.logs import get_logger
from h2qd.runtime.errands import Errands
from h2qd.runtime.refusal import Refusal
from h2qd.safetensors.errors import SafetensorsError
from h2qd.safetensors.identity import identity_of
from h2qd.store.registry import Manifest, Registry
from h2qd.wire.workers import Inspected, InspectFile

log = get_logger()

_BACKENDS = {"fake": "fake", "safetensors": "torch"}
"""Which engine runs a format; the others are run by llama."""


class Imports:
    """Checks files through workers and keeps what is registered, in memory and on disk."""

    def __init__(
        self,
        errands: Errands,
        registry: Registry,
        manifests: dict[str, Manifest],
        disk: Executor,
        registered: Callable[[Manifest], None],
    ) -> None:
        self._errands = errands
        self._registry = registry
        self._manifests = manifests
        self._disk = disk
        self._registered = registered
        self._one_at_a_time = asyncio.Lock()

    async def run(
        self, path: str, name: str, source: str, backend: str | None, on_progress: Callable[[float], None]
    ) -> tuple[Manifest, bool]:
        """Register `path` as `name`; the manifest, and whether anything changed.

        Raises `Refusal`: file_not_found, invalid_model_file, name_taken, state_not_written, load_failed (no
        process could be started), and how a worker may end. A cancelled task ends its worker.
        """
        async with self._one_at_a_time:
            known = self._manifests.get(name)
            if known is not None and known.path != path and source == "import":
                raise Refusal(Fault("name_taken", f"cannot register {path} as {name}: {known.path} is"))
            if known is not None and known.path == path and known.identity == await self.identity(path):
                return known, False
            found = await self._errands.run(InspectFile(path), name, Inspected, on_progress)
            manifest = Manifest(
                name=name,
                path=path,
                backend=backend or _BACKENDS.get(found.facts.format, "llama"),
                sha256=found.sha256,
                identity=found.identity,
                facts=found.facts,
                imported_at_ms=round(time.time() * 1000),
                source=source,
            )
            await self._put(manifest)
            self._manifests[name] = manifest
            self._registered(manifest)
            return manifest, True

    async def _put(self, manifest: Manifest) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._disk, self._registry.put, manifest)
        except OSError as error:
            log.error("state.not_written", model=manifest.name, error=str(error))  # noqa: TRY400 - expected
            what = f"cannot register {manifest.name}: its manifest cannot be written ({error.strerror})"
            raise Refusal(Fault("state_not_written", what)) from error

    async def identity(self, path: str) -> list[int]:
        """The identity of the file or folder now; empty when it cannot be seen."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._disk, identity_of, path)
        except (OSError, SafetensorsError):
            return []
