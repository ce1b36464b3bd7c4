"""One server as the dialects see it: ask for JSON, or open a stream; paced, and repeated where that can help.

A request is sent again only while nothing of its answer was used: when it could not connect, when the connection
broke before the head of the answer, and when the server says that it is busy. Called by `ollama` and `openai`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec

from h2qd.wire.workers import RemoteTarget
from h2qd.worker.engine import EngineError
from h2qd.worker.remote.errors import MALFORMED, RemoteError, nonsense, refused
from h2qd.worker.remote.pace import Pace
from h2qd.worker.remote.retry import Retries
from h2qd.worker.remote.secret import Secret
from h2qd.worker.remote.transport import BODY_BYTES_MAX, Answer, Transport

_ERROR_BYTES_MAX = 64 * 1024
_ERROR_S = 5.0
"""For the body of a refusal: its status says enough."""

T = TypeVar("T")


class Server:
    """Owns the transport. `target` is how it is spoken to."""

    def __init__(self, target: RemoteTarget, secret: Secret) -> None:
        self.target = target
        self.transport = Transport(target, secret)
        self._secret = secret
        self._pace = Pace(target.rate_per_min)
        self._retries = Retries()

    async def ask(self, path: str, body: object, kind: type[T], *, head_s: float | None = None) -> T:
        """POST `body`; the answer, which must be a `kind`. Raises `RemoteError`."""
        return await self._whole("POST", path, body, kind, head_s)

    async def look(self, path: str, kind: type[T]) -> T:
        """GET; the answer, which must be a `kind`. Raises `RemoteError`."""
        return await self._whole("GET", path, None, kind, None)

    @asynccontextmanager
    async def stream(self, path: str, body: object) -> AsyncIterator[Answer]:
        """POST `body`; a 2xx answer whose body is to be read. Raises `RemoteError`."""
        answer = await self._opened("POST", path, body, None)
        try:
            yield answer
        finally:
            await answer.close()

    async def _whole(self, method: str, path: str, body: object, kind: type[T], head_s: float | None) -> T:
        answer = await self._opened(method, path, body, head_s)
        try:
            data = await answer.body(self.target.read_s, BODY_BYTES_MAX)
        finally:
            await answer.close()
        return decoded(data, kind)

    async def _opened(self, method: str, path: str, body: object, head_s: float | None) -> Answer:
        data = None if body is None else msgspec.json.encode(body)
        return await self._retries.run(lambda: self._try(method, path, data, head_s))

    async def _try(self, method: str, path: str, data: bytes | None, head_s: float | None) -> Answer:
        if method == "POST":  # looks cost a server nothing
            await self._pace.turn()
        answer = await self.transport.open(method, path, data, head_s=head_s)
        after_s = self._pace.heed(answer)
        if 200 <= answer.status < 300:
            return answer
        try:
            body = await answer.body(_ERROR_S, _ERROR_BYTES_MAX, cut=True)
        except RemoteError:
            body = b""
        finally:
            await answer.close()
        raise refused(answer.status, body, after_s=after_s)

    def scrubbed(self, error: EngineError) -> EngineError:
        """`error` as others may see it: without the key, which servers like to quote."""
        return EngineError(error.code, self._secret.scrubbed(error.message), away=error.away)

    async def close(self) -> None:
        """Close all connections."""
        await self.transport.close()


def decoded(data: bytes, kind: type[T]) -> T:
    """`data` as a `kind`. Raises `RemoteError` (remote_failed). Texts of the decoder hold no data but field names."""
    try:
        return msgspec.json.decode(data, type=kind)
    except MALFORMED as error:
        why = str(error) if isinstance(error, msgspec.DecodeError) else "it is no JSON of a reasonable depth"
        raise nonsense(f"what it answered is not the API's: {why[:200]}") from None
