"""The registry: one manifest per model under `STATE/models`, and what was remembered under `STATE/memory.json`.

Manifests refer to model files in place. A manifest that cannot be read is set aside as `.broken`, never deleted,
and costs no other model. Called by the daemon at start and, off the loop, by `runtime.imports`.
"""

import contextlib
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import msgspec

from h2qd.core.lessons import Lesson
from h2qd.core.plan import KV_TYPES
from h2qd.core.records import Kept
from h2qd.store.files import read_bounded, write_atomically
from h2qd.wire.messages import ModelFacts
from h2qd.wire.names import name_fault

MANIFEST_BYTES_MAX = 1024 * 1024
MODELS_MAX = 10_000

Names = Annotated[list[str], msgspec.Meta(max_length=MODELS_MAX)]


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A registered model. `identity` is (device, inode, size, mtime_ns) of the file that was checked.

    `lessons`: what its loads were measured to take on this device. `remote`: the server that runs it, in whose words
    `path` is its name; such a manifest is not written to disk.
    """

    name: str
    path: str
    backend: str
    sha256: str
    identity: list[int]
    facts: ModelFacts
    imported_at_ms: int
    source: str = "import"
    remote: str = ""
    lessons: list[Lesson] = []


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What outlives the daemon besides the models: which one was active, which were resident and pinned."""

    active: str | None = None
    resident: Annotated[list[Kept], msgspec.Meta(max_length=MODELS_MAX)] = []
    pinned: Names = []


class Registry:
    """The models on disk. Not safe for two threads at a time."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the state folder; it exists and is locked. Raises OSError."""
        self._models = folder / "models"
        self._memory = folder / "memory.json"
        self._models.mkdir(exist_ok=True, mode=0o750)

    def load(self) -> tuple[list[Manifest], list[str]]:
        """All manifests by name, and a complaint for each that was set aside. What a crash left half-written goes."""
        for leftover in (*self._models.glob("*.new"), self._memory.with_name(self._memory.name + ".new")):
            with contextlib.suppress(OSError):
                leftover.unlink()
        manifests: list[Manifest] = []
        complaints: list[str] = []
        for path in sorted(self._models.glob("*.json"))[:MODELS_MAX]:
            try:
                manifest = self._read(path)
            except (OSError, ValueError, RecursionError) as error:
                complaints.append(f"cannot read the manifest {path.name}, set aside: {error}")
                with contextlib.suppress(OSError):
                    path.rename(path.with_suffix(".broken"))
            else:
                manifests.append(manifest)
        return manifests, complaints

    def _read(self, path: Path) -> Manifest:
        manifest = msgspec.json.decode(read_bounded(path, MANIFEST_BYTES_MAX), type=Manifest)
        if name_fault(manifest.name) or self._path(manifest.name) != path:
            raise ValueError("it names another model")
        return manifest

    def put(self, manifest: Manifest) -> None:
        """Register a model, or replace its manifest. Raises OSError, the old manifest being whole then."""
        write_atomically(self._path(manifest.name), msgspec.json.encode(manifest))

    def remove(self, name: str) -> None:
        """Forget a model; its file stays. Raises OSError."""
        self._path(name).unlink(missing_ok=True)

    def recall(self) -> Memory:
        """What was remembered last; nothing when that cannot be read, or could not have been written here."""
        try:
            memory = msgspec.json.decode(read_bounded(self._memory, MANIFEST_BYTES_MAX), type=Memory)
        except (OSError, ValueError, RecursionError):
            return Memory()
        sound = all(kept.kv_type in KV_TYPES and kept.ctx > 0 for kept in memory.resident)
        return memory if sound else Memory()

    def remember(self, memory: Memory) -> None:
        """Keep across restarts. Raises OSError."""
        write_atomically(self._memory, msgspec.json.encode(memory))

    def _path(self, name: str) -> Path:
        return self._models / (quote(name, safe="") + ".json")
