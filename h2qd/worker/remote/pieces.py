"""The parts of a streamed answer, each within a time: bytes that complete nothing do not prolong it.

So a server that drips is given up like one that is silent. Called by the dialects.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Protocol

from h2qd.worker.remote.errors import RemoteError, broken_off
from h2qd.worker.remote.transport import Answer

_END_S = 0.1
"""For the end of a stream whose last part is here."""


class Parser(Protocol):
    """Takes a stream apart: `ndjson.Lines`, `sse.Events`."""

    def feed(self, data: bytes) -> list[bytes]:
        """The parts that `data` completes."""
        ...

    def finish(self) -> list[bytes]:
        """What the end of the stream completes."""
        ...


async def pieces(answer: Answer, parser: Parser, read_s: float) -> AsyncGenerator[bytes]:
    """Whole parts, each at most `read_s` after the one before it was taken. Raises `RemoteError`."""
    async with aclosing(answer.chunks()) as chunks:
        more = True
        while more:
            ready: list[bytes] = []
            try:
                async with asyncio.timeout(read_s):
                    while more and not ready:
                        chunk = await anext(chunks, None)
                        more = chunk is not None
                        ready = parser.finish() if chunk is None else parser.feed(chunk)
            except TimeoutError:
                raise broken_off(f"the server said nothing whole for {read_s:g} s") from None
            for part in ready:
                yield part


async def ended(parts: AsyncGenerator[bytes]) -> None:
    """Wait a moment for a stream's end once its last part is here: only then can its connection be used again.

    One that goes on, or stays open and silent, is closed with its stream.
    """
    with suppress(TimeoutError, RemoteError):
        async with asyncio.timeout(_END_S):
            await anext(parts, None)
