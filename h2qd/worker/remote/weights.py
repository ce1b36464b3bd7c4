"""The file of weights behind a model of an Ollama: names that share one (`ollama cp`, `FROM`) share one runner there.

/api/ps shows such a runner under the name that had it loaded, whichever others are answered by it since; only the
Modelfile of /api/show tells that they are the same. Called by `ollama`. Decides nothing.
Invariant: a server is asked once for each model that runs and is not known by its digest.
"""

from h2qd.wire.workers import RUNNING_MAX
from h2qd.worker.remote.errors import RemoteError
from h2qd.worker.remote.ollama_answers import Shown
from h2qd.worker.remote.server import Server

_NO_SUCH_MODEL = 404


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
