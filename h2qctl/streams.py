"""What `AsyncClient` hands out for answers that come in pieces, and for notices: `flow.Stream` and `Watch`, awaited.

Both are asynchronous context managers and iterators over an `AsyncFlow`, and stop it when they are left: however that
is, the daemon does not go on working for it.
"""

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from h2qctl.flow import Gathered, expect
from h2qctl.line import AsyncFlow
from h2qd.wire import messages as m


class AsyncStream(Gathered):
    """The text of an answer as it comes, or all that comes (`deltas`).

    `answer` is None until the end, then all of it: text, `thinking` and `logprobs`.
    """

    def __init__(self, flow: AsyncFlow) -> None:
        super().__init__()
        self._flow = flow

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.cancel()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        while (delta := await self._next()) is not None:
            if delta.text or not delta.thinking:
                return delta.text
        raise StopAsyncIteration

    async def deltas(self) -> AsyncIterator[m.Delta]:
        """The pieces with what the model thinks before its text; instead of the texts alone."""
        while (delta := await self._next()) is not None:
            yield delta

    async def _next(self) -> m.Delta | None:
        async for chunk in self._flow:
            return self._kept(expect(chunk, m.Delta))
        if self.answer is not None or self._flow.end is None:
            return None
        return self._ended(self._flow.end)

    def cancel(self) -> None:
        """Be done: cancel the request at the daemon unless it has ended."""
        self._flow.cancel()


class AsyncWatch:
    """Notices as they come. `end` is None until the daemon ends the subscription."""

    end: m.EventsEnd | None = None

    def __init__(self, flow: AsyncFlow) -> None:
        self._flow = flow

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.cancel()

    def __aiter__(self) -> AsyncIterator[m.Notice]:
        return self

    async def __anext__(self) -> m.Notice:
        async for notice in self._flow:
            return expect(notice, m.Notice)
        if self._flow.end is not None:
            self.end = expect(self._flow.end, m.EventsEnd)
        raise StopAsyncIteration

    def cancel(self) -> None:
        """Be done: cancel the subscription at the daemon unless it has ended."""
        self._flow.cancel()
