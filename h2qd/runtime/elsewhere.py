"""What servers on this device hold of its memory, by model, as each said last: what others loaded there is counted.

Said by the worker of a resident model, which looks every few seconds, and by whoever asks a server what it has. What
of it is ours follows from what the core holds now, so a model that was ours a moment ago is foreign at once if it
stayed there. Called by `residents` and `remotes`, which hear it, by `watch`, for the core, and by `reports`.
"""

from collections.abc import Callable, Mapping, Sequence

from h2qd.core.records import Model
from h2qd.core.states import HOLDING
from h2qd.store.registry import Manifest
from h2qd.wire.names import tagged
from h2qd.wire.workers import RunningModel


class Elsewhere:
    """`models` are the core's, as they are now; `manifests` tell whose models they are."""

    def __init__(self, manifests: Mapping[str, Manifest], models: Callable[[], Mapping[str, Model]]) -> None:
        self._manifests = manifests
        self._models = models
        self._running: dict[str, Sequence[RunningModel]] = {}

    def heard(self, server: str, running: Sequence[RunningModel]) -> None:
        """A server said what it has in memory; nothing, too, when it cannot be asked."""
        self._running[server] = running

    def foreign_bytes(self) -> dict[str, int]:
        """What servers hold for models that are not ours, by server; only where that is something."""
        if not any(self._running.values()):
            return {}
        names = (name for name, model in self._models().items() if model.status in HOLDING)
        manifests = (self._manifests[name] for name in names if name in self._manifests)
        ours = {(manifest.remote, tagged(manifest.path)) for manifest in manifests if manifest.remote}
        sizes = {
            server: sum(one.size_bytes for one in running if (server, tagged(one.name)) not in ours)
            for server, running in self._running.items()
        }
        return {server: size for server, size in sizes.items() if size}
