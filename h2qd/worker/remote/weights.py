"""The file of weights behind a model of an Ollama: names that share one (`ollama cp`, `FROM`) share one runner there.

/api/ps shows such a runner under the name that had it loaded, whichever others are answered by it since; only the
Modelfile of /api/show tells that they are the same. Called by `ollama`. Decides nothing.
Invariant: a server is asked once for each model that runs and is not known by its digest.
"""

import re

import msgspec

from h2qd.wire.workers import RUNNING_MAX
from h2qd.worker.remote.errors import RemoteError
from h2qd.worker.remote.server import Server

_FROM = re.compile(r"^FROM (.+)$", re.MULTILINE)
_NO_SUCH_MODEL = 404


class Shown(msgspec.Struct):
    """What /api/show tells of a model. One that has a `remote_host` runs there, and holds no memory here."""

    capabilities: list[str] | None = None
    modelfile: str = ""
    remote_host: str = ""

    @property
    def weights(self) -> str:
        """The file, by its name there; empty where it is not told."""
        found = _FROM.search(self.modelfile)
        return found[1] if found is not None else ""


class Weights:
    """Of the models of one server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._known: dict[tuple[str, str], str] = {}

    async def behind(self, model: str, digest: str) -> str:
        """The file of a model that runs; empty where there is no such model any more. Raises `RemoteError`."""
        key = (model, digest)
        if key not in self._known:
            if len(self._known) >= RUNNING_MAX:
                self._known.clear()
            self._known[key] = await self._ask(model)
        return self._known[key]

    async def _ask(self, model: str) -> str:
        try:
            return (await self._server.ask("/api/show", {"model": model}, Shown)).weights
        except RemoteError as error:
            if error.status != _NO_SUCH_MODEL:
                raise
            return ""
