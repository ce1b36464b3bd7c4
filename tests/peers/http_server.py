"""A small HTTP/1.1 server in a thread of its own, whose handlers see the bytes: what the peers are made of.

It can do what a proper server cannot: end in mid-answer, drip, be silent, reset the connection, talk nonsense.
"""

import asyncio
import json
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeAlias

PATIENCE_S = 20.0


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        read = json.loads(self.body or b"{}")
        assert isinstance(read, dict)
        return read


@dataclass
class Response:
    """The answer to one request, a part at a time. A handler that returns without `end` closes the connection."""

    writer: asyncio.StreamWriter
    gone: asyncio.Event
    ended: bool = False
    headers: dict[str, str] = field(default_factory=dict)

    async def whole(self, status: int, body: object, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.head(status, {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers})
        await self.raw(data)
        self.ended = True

    async def begin(self, content_type: str) -> None:
        await self.head(200, {"Transfer-Encoding": "chunked", "Content-Type": content_type})

    async def head(self, status: int, headers: dict[str, str]) -> None:
        told = {**self.headers, **headers}
        lines = [f"HTTP/1.1 {status} Status", *(f"{name}: {value}" for name, value in told.items()), "", ""]
        await self.raw("\r\n".join(lines).encode())

    async def chunk(self, data: bytes) -> None:
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.raw(b"0\r\n\r\n")
        self.ended = True

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def silence(self) -> None:
        """Say nothing until the other side goes."""
        await self.gone.wait()

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Handler: TypeAlias = Callable[[Request, Response], Awaitable[None]]


class HttpServer:
    """Ends with its `with`. `port` 0: any that is free.

    `faults` are taken, one a request, instead of the handler, where their path matches.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.requests: list[Request] = []
        self.faults: deque[tuple[str, Handler]] = deque()
        self._tls = tls
        self._connections = 0
        self.accepted = 0
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.port = port

    async def handle(self, request: Request, response: Response) -> None:
        raise NotImplementedError

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(PATIENCE_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(PATIENCE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    def fail(self, path: str, fault: Handler, times: int = 1) -> None:
        """The next requests for `path` are answered by `fault`."""
        self.faults.extend([(path, fault)] * times)

    def asked(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path == path]

    def wait_connections(self, count: int) -> bool:
        """Until so many connections are open."""
        with self._changed:
            return self._changed.wait_for(lambda: self._connections == count, PATIENCE_S)

    def wait_asked(self, path: str, times: int = 1) -> bool:
        """Until there were so many requests for `path`."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.asked(path)) >= times, PATIENCE_S)

    def call(self, what: Callable[[], Any]) -> Any:
        """Do `what` in the server's thread."""

        async def called() -> Any:
            return what()

        return asyncio.run_coroutine_threadsafe(called(), self._loop).result(PATIENCE_S)

    @property
    def listens(self) -> bool:
        """Whether it was not told to go away."""
        return bool(self._server.is_serving())

    def go_away(self) -> None:
        """As if its process was killed: nobody listens, and what was open is reset."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(PATIENCE_S)

    def come_back(self) -> None:
        """As if it was started again, where it was."""
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(PATIENCE_S)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls, limit=2**24)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _count(self, change: int) -> None:
        with self._changed:
            self._connections += change
            self.accepted += max(0, change)
            self._changed.notify_all()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._count(1)
        try:
            while (request := await self._read(reader, writer)) is not None:
                with self._changed:
                    self.requests.append(request)
                    self._changed.notify_all()
                if not await self._answer(request, reader, writer):
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError, ValueError):
            pass  # the client left, or the server ends
        finally:
            writer.close()
            self._count(-1)

    async def _answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        response = Response(writer, asyncio.Event())
        handler: Handler = self.handle
        for n, (path, fault) in enumerate(self.faults):
            if path == request.path:
                del self.faults[n]
                handler = fault
                break
        working = asyncio.ensure_future(handler(request, response))
        leaving = asyncio.ensure_future(self._left(reader))
        done, _ = await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working not in done:
            response.gone.set()
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            return False
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        working.result()
        return response.ended

    async def _left(self, reader: asyncio.StreamReader) -> None:
        """Returns when the client goes: it sends nothing while it waits."""
        while not reader.at_eof() and reader.exception() is None:  # noqa: ASYNC110 - readers have no event for that
            await asyncio.sleep(0.01)

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
        first = await reader.readexactly(1)
        if first == b"\x16":  # TLS, where none is spoken
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            return None
        head = first + await reader.readuntil(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").strip().split("\r\n")
        method, path, _ = line.split(" ")
        headers = {name.strip().lower(): value.strip() for name, _, value in (one.partition(":") for one in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        return Request(method, path, headers, body)
