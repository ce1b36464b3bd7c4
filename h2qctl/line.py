"""One connection under asyncio: what `channel` is for threads, and with the same promises.

One task reads the socket and libzmq's reports about it, and wakes whoever waits for a call. Everything runs
on the loop that opened the line, so there are no locks. `AsyncFlow` is one request, from start to end.
"""

import asyncio
from collections.abc import AsyncIterator
from time import monotonic

import zmq
import zmq.asyncio

from h2qctl import address
from h2qctl.channel import GRACE_S, LOSSES, loss, silent, tune
from h2qctl.conversation import Call, Conversation, Item
from h2qctl.errors import H2qError
from h2qctl.flow import OnProgress, Reply, expect
from h2qd.wire import messages as m
from h2qd.wire.frames import Kind


class Line:
    """A connection to the daemon at `path`. Raises `H2qError` when nobody listens there."""

    def __init__(self, context: zmq.asyncio.Context, path: str, silence_s: float) -> None:
        address.probe(path)
        self.closed = False
        self._path = path
        self._silence_s = silence_s
        self._talk = Conversation()
        self._wakes: dict[Call, asyncio.Event] = {}
        self._ended = asyncio.Event()
        self._socket = context.socket(zmq.DEALER)
        tune(self._socket)
        self._monitor = self._socket.get_monitor_socket(LOSSES)
        self._socket.connect(f"ipc://{path}")
        self._reader = asyncio.create_task(self._read())

    def open(self, op: str, body: m.Ask, timeout_s: float | None) -> tuple[Call, float | None]:
        """Start a call; with it the monotonic time at which to stop waiting, if it has a deadline."""
        call, frames = self._talk.ask(op, body, timeout_s)
        self._wakes[call] = asyncio.Event()
        self._send(frames)
        return call, None if timeout_s is None else monotonic() + timeout_s + GRACE_S

    async def wait(self, call: Call, until: float | None) -> Item:
        """The next item of `call`. Raises `H2qError` (timeout, unreachable) when none comes."""
        wake = self._wakes[call]
        while (item := call.take()) is None:
            if self.closed:
                raise H2qError("unreachable", "cannot go on: this client was closed", "open a new client")
            wake.clear()
            left_s = self._silence_s if until is None else min(self._silence_s, until - monotonic())
            try:
                async with asyncio.timeout(left_s):
                    await wake.wait()
            except TimeoutError:
                if until is not None and monotonic() >= until:
                    raise H2qError(
                        "timeout", "cannot get an answer: the time given for it is over", "raise the timeout"
                    ) from None
                self._talk.forget(call)
                raise silent(self._path, self._silence_s, heard=self._talk.heard) from None
        return item

    def consumed(self, call: Call) -> None:
        """A chunk of `call` was used up: let the daemon send more when it is time to."""
        if not self.closed and (frames := self._talk.consumed(call)):
            self._send(frames)

    def done(self, call: Call) -> None:
        """Nobody waits for `call` any more; it is cancelled unless it has ended."""
        self._wakes.pop(call, None)
        frames = self._talk.give_up(call)
        if frames is not None and not self.closed:
            self._send(frames)

    async def close(self, patience_s: float) -> None:
        """Give up all calls, wait at most this long for their ends, then hang up."""
        for call in self._talk.calls():
            frames = self._talk.give_up(call)
            if frames is not None and not self.closed:
                self._send(frames)
        try:
            async with asyncio.timeout(patience_s):
                while self._talk.calls() and not self.closed:
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            pass  # it had its time; the daemon stops at the stream's window by itself
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        self._hang_up()

    def _send(self, frames: list[bytes]) -> None:
        """Send without waiting: a DEALER takes a message at once unless thousands are unsent."""
        self._socket.send_multipart(frames)

    async def _read(self) -> None:
        """Feed what arrives until the connection is lost."""
        poller = zmq.asyncio.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        while True:
            ready = dict(await poller.poll())
            if self._socket in ready:
                self._feed(await self._socket.recv_multipart())
            elif self._monitor in ready:
                report = (await self._monitor.recv_multipart())[0]
                self._talk.fail(*loss(report))
                self._hang_up()
                return

    def _feed(self, frames: list[bytes]) -> None:
        call = self._talk.feed(frames)
        if call is None or call.ended:
            self._ended.set()
        if call is None:
            self._wake_all()
        elif call in self._wakes:
            self._wakes[call].set()

    def _hang_up(self) -> None:
        if not self.closed:
            self.closed = True
            self._socket.disable_monitor()
            self._monitor.close(0)
            self._socket.close(0)
            self._ended.set()
            self._wake_all()

    def _wake_all(self) -> None:
        for wake in self._wakes.values():
            wake.set()


class AsyncFlow:
    """The chunks of one request; it starts when it is first awaited."""

    def __init__(
        self, line: Line, op: str, body: m.Ask, timeout_s: float | None, on_progress: OnProgress | None
    ) -> None:
        self.end: m.Say | None = None
        self._line = line
        self._ask = (op, body, timeout_s)
        self._on_progress = on_progress
        self._call: Call | None = None
        self._until: float | None = None
        self._over = False

    def __aiter__(self) -> AsyncIterator[m.Say]:
        return self

    async def __anext__(self) -> m.Say:
        if self._over:
            raise StopAsyncIteration
        try:
            chunk = await self._next()
        except BaseException:
            self.cancel()
            raise
        if chunk is None:
            self.cancel()
            raise StopAsyncIteration
        return chunk

    async def _next(self) -> m.Say | None:
        """The next chunk, or None after the reply."""
        if self._call is None:
            self._call, self._until = self._line.open(*self._ask)
        while True:
            item = await self._line.wait(self._call, self._until)
            if item.kind is Kind.ERROR:
                raise H2qError.of(expect(item.value, m.ErrorReply))
            if item.kind is Kind.REPLY:
                self.end = item.value
                return None
            if item.kind is Kind.CHUNK:
                self._line.consumed(self._call)
                return item.value
            if self._on_progress is not None:
                self._on_progress(expect(item.value, m.Progress))

    async def finish(self, kind: type[Reply]) -> Reply:
        """The reply, once it is there; chunks are let go by."""
        async for _ in self:
            pass
        return expect(self.end, kind)

    def cancel(self) -> None:
        """Be done with the request: cancel it at the daemon unless it has ended."""
        self._over = True
        if self._call is not None:
            self._line.done(self._call)
