"""HTTP to one server: TLS, proxy, a pool of connections, and a bound on every size and time.

Follows no redirect, keeps no cookie, undoes no compression, and takes nothing from the environment, so a server can
neither send it elsewhere nor swell. Called by `server`, which repeats and paces; `address` decides whom it connects
to, `diagnosis` what went wrong.
Invariant: whatever a server does ends as bytes within the bounds or as one `RemoteError`, that holds no secret.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import NoReturn
from urllib.parse import SplitResult, unquote, urlsplit

import httpcore2

from h2qd.wire.names import shown
from h2qd.wire.workers import RemoteTarget
from h2qd.worker.engine import EngineError
from h2qd.worker.remote.address import CheckedNetwork, is_refused
from h2qd.worker.remote.diagnosis import diagnosed
from h2qd.worker.remote.errors import RemoteError, broken_off, nonsense
from h2qd.worker.remote.secret import Secret

BODY_BYTES_MAX = 32 * 1024 * 1024
"""A response that is taken as a whole: vectors of many texts are the largest."""
_KEEPALIVE_S = 30.0
_MORE_CONNECTIONS = 2
"""Besides those of requests: for a look at what is loaded, and for an unload."""
_PORTS = {"http": 80, "https": 443}


class Answer:
    """A response whose head is here and whose body is not yet. To be closed by whoever got it."""

    def __init__(self, transport: "Transport", response: httpcore2.Response) -> None:
        self._transport = transport
        self._response = response
        self.status = response.status
        self._headers = {name.lower(): value for name, value in reversed(response.headers)}  # the first counts

    def header(self, name: str) -> str:
        """The value of a header, empty when there is none. `name` in lower case."""
        return self._headers.get(name.encode("ascii"), b"").decode("latin-1")[:1024]

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The body as it comes. Raises `RemoteError`; who reads bounds the time and the size."""
        try:
            async with aclosing(self._response.aiter_stream()) as body:
                async for chunk in body:
                    yield chunk
        except Exception as error:  # noqa: BLE001 - the library's kinds are told apart there
            self._transport.explain(error)

    async def body(self, limit_s: float, size_max: int = BODY_BYTES_MAX, *, cut: bool = False) -> bytes:
        """All of it, within `limit_s`. Raises `RemoteError`: also when it is larger, unless it may be `cut` there."""
        data = bytearray()
        try:
            async with asyncio.timeout(limit_s), aclosing(self.chunks()) as chunks:
                async for chunk in chunks:
                    data += chunk
                    if len(data) > size_max:
                        break
        except TimeoutError:
            raise broken_off(f"the server did not finish its answer in {limit_s:g} s") from None
        if len(data) > size_max and not cut:
            raise nonsense(f"its answer is larger than {size_max} bytes")
        return bytes(data[:size_max])

    async def close(self) -> None:
        """Give the connection back, or close it where the body was not read to its end."""
        await self._response.aclose()


class Transport:
    """One server. Not made for more than one event loop."""

    def __init__(self, target: RemoteTarget, secret: Secret) -> None:
        url = _checked(target.url, "url", target)
        proxy = _checked(target.proxy, "proxy", target) if target.proxy else None
        self._target = target
        self._proxied = proxy is not None
        self._network = CheckedNetwork(private_addresses=target.private_addresses)
        self._origin = (url.scheme.encode(), (url.hostname or "").encode("idna"), url.port or _PORTS[url.scheme])
        self._prefix = url.path.rstrip("/")
        host = shown(url.hostname or "")
        self.name = f"{host}:{self._origin[2]}"
        self._headers = [
            (b"Host", url.netloc.encode("ascii")),
            (b"User-Agent", b"h2qd"),
            (b"Accept-Encoding", b"identity"),
            *secret.header(),
        ]
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=_tls(target) if url.scheme == "https" or (proxy and proxy.scheme == "https") else None,
            proxy=_proxy(proxy, target) if proxy else None,
            max_connections=target.concurrency + _MORE_CONNECTIONS,
            keepalive_expiry=_KEEPALIVE_S,
            network_backend=self._network,
        )

    @property
    def is_this_device(self) -> bool:
        """Whether the latest connection went to this device itself; not known, so False, behind a proxy."""
        return bool(self._network.is_this_device) and not self._proxied

    def send_blind(self, path: str, body: bytes, limit_s: float) -> None:
        """POST `body` to this device's plain port and leave; for a process at its end, from any thread. Never raises.

        Does nothing for another device, through a proxy, or where TLS would have to be spoken.
        """
        scheme, host, port = self._origin
        if scheme != b"http" or not self.is_this_device:
            return
        head = [f"POST {self._prefix}{path} HTTP/1.1".encode()]
        head += [b": ".join(header) for header in self._headers]
        head += [b"Content-Type: application/json", b"Content-Length: %d" % len(body), b"Connection: close", b"", b""]
        with suppress(OSError), socket.create_connection((host.decode(), port), limit_s) as connection:
            connection.sendall(b"\r\n".join(head) + body)

    @property
    def connections(self) -> tuple[int, int]:
        """How many there are, and how many of them are idle."""
        return len(self._pool.connections), sum(one.is_idle() for one in self._pool.connections)

    async def open(self, method: str, path: str, body: bytes | None = None, *, head_s: float | None = None) -> Answer:
        """Send a request and wait `head_s` (the target's read_s) for the head of the answer. Raises `RemoteError`.

        Any status comes back but 3xx, which is refused: the key is not for whoever a server names.
        """
        target = self._target
        limit_s = target.read_s if head_s is None else head_s
        headers = list(self._headers)
        if body is not None:
            headers += [(b"Content-Type", b"application/json"), (b"Content-Length", str(len(body)).encode())]
        scheme, host, port = self._origin
        request = httpcore2.Request(
            method,
            httpcore2.URL(scheme=scheme, host=host, port=port, target=f"{self._prefix}{path}"),
            headers=headers,
            content=body,
            extensions={"timeout": {"connect": target.connect_s, "read": limit_s, "write": limit_s}},
        )
        try:
            async with asyncio.timeout(target.connect_s + limit_s):
                answer = Answer(self, await self._pool.handle_async_request(request))
        except Exception as error:  # noqa: BLE001 - the library's kinds are told apart there
            self.explain(error)
        await self._check_head(answer)
        return answer

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.aclose()

    async def _check_head(self, answer: Answer) -> None:
        problem = None
        if 300 <= answer.status < 400:
            where = shown(answer.header("location"), 200)
            problem = RemoteError("remote_failed", f"the server redirects to {where!r}, which is not followed")
        elif answer.header("content-encoding") not in ("", "identity"):
            problem = nonsense("it compresses what was asked for as it is")
        if problem is not None:
            await answer.close()
            raise problem

    def explain(self, error: Exception) -> NoReturn:
        """Raise `error`, whatever it is of, as the `RemoteError` that tells what happened."""
        raise diagnosed(error, self.name, self._target) from None  # the library's exceptions quote what was sent


def _checked(url: str, field: str, target: RemoteTarget) -> SplitResult:
    """`url` in parts. Raises `EngineError` (load_failed). An address in it is judged also where a proxy connects."""
    problem = f"cannot use the server's {field}: it is no http:// or https:// address"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        if parts.scheme not in _PORTS or not host or not url.isascii() or not url.isprintable() or " " in url:
            raise EngineError("load_failed", problem)
        host.encode("idna")
    except ValueError:
        raise EngineError("load_failed", problem) from None
    if field == "url" and (parts.username is not None or parts.query or parts.fragment):
        raise EngineError("load_failed", "cannot use the server's url: it holds more than a host, a port and a path")
    try:
        refused = is_refused(host) and not target.private_addresses
    except ValueError:  # a name: judged when it is resolved
        return parts
    if refused:
        what = "its address is link-local or a metadata service's"
        raise EngineError("load_failed", f"cannot use the server's {field}: {what}")
    return parts


def _proxy(url: SplitResult, target: RemoteTarget) -> httpcore2.Proxy:
    auth = (unquote(url.username), unquote(url.password or "")) if url.username is not None else None
    return httpcore2.Proxy(
        httpcore2.URL(scheme=url.scheme, host=url.hostname or "", port=url.port or _PORTS[url.scheme], target="/"),
        auth=auth,
        ssl_context=_tls(target) if url.scheme == "https" else None,
    )


def _tls(target: RemoteTarget) -> ssl.SSLContext:
    """Verification by the system's authorities, or by `ca_file` alone. Raises `EngineError` (load_failed)."""
    what = "ca_file"
    try:
        context = ssl.create_default_context(cafile=target.ca_file or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if not target.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if target.client_cert:
            what = "client_cert"
            context.load_cert_chain(target.client_cert, target.client_key or None, password=lambda: "")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = shown(str(getattr(error, "strerror", None) or getattr(error, "reason", None) or "it cannot be read"))
        raise EngineError("load_failed", f"cannot use the server's {what}: {reason}") from None
    return context
