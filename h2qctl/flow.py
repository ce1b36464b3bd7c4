"""One request from start to end, as a caller iterates over it: chunks out, progress aside, the reply last.

`Flow` is what every blocking method uses; `Stream` and `Watch` are what `Client.stream`, `Client.chat` and
`Client.events` hand out. Invariant: however a flow is left (its end, an error, Ctrl-C, `close`, or being
forgotten), the daemon does not go on working for it.
"""

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from h2qctl.channel import Channel
from h2qctl.errors import H2qError
from h2qd.wire import messages as m
from h2qd.wire.frames import Kind

OnProgress = Callable[[m.Progress], None]
OnBody = Callable[[Kind, bytes], None]
Reply = TypeVar("Reply", bound=m.Say)


def expect(value: m.Say | None, kind: type[Reply]) -> Reply:
    """`value`, which the catalogue says is a `kind`."""
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} is not the {kind.__name__} that this operation answers")
    return value


class Flow:
    """The chunks of one request. `on_body` sees each body undecoded, in the order in which they are taken."""

    def __init__(
        self,
        channel: Channel,
        op: str,
        body: m.Ask,
        timeout_s: float | None,
        on_progress: OnProgress | None,
        on_body: OnBody | None,
    ) -> None:
        self.end: m.Say | None = None
        self._over = True
        self._channel = channel
        self._on_progress = on_progress
        self._on_body = on_body
        self._call, self._until = channel.open(op, body, timeout_s)
        self._over = False

    def __iter__(self) -> Iterator[m.Say]:
        return self

    def __next__(self) -> m.Say:
        if self._over:
            raise StopIteration
        try:
            chunk = self._next()
        except BaseException:
            self.close()
            raise
        if chunk is None:
            raise StopIteration
        return chunk

    def _next(self) -> m.Say | None:
        """The next chunk, or None after the reply."""
        while True:
            item = self._channel.wait(self._call, self._until)
            if item.kind is Kind.ERROR:
                raise H2qError.of(expect(item.value, m.ErrorReply))
            if self._on_body is not None:
                self._on_body(item.kind, item.raw)
            if item.kind is Kind.PROGRESS:
                if self._on_progress is not None:
                    self._on_progress(expect(item.value, m.Progress))
            elif item.kind is Kind.CHUNK:
                self._channel.consumed(self._call)
                return item.value
            else:
                self._over = True
                self.end = item.value
                return None

    def finish(self, kind: type[Reply]) -> Reply:
        """The reply, once it is there; chunks are let go by."""
        for _ in self:
            pass
        return expect(self.end, kind)

    def cancel(self) -> None:
        """Ask the daemon to stop; from any thread. A reader that waits gets the error `cancelled`, or the end."""
        self.close()

    def close(self) -> None:
        """Be done with the request: cancel it at the daemon unless it has ended."""
        if not self._over:
            self._over = True
            self._channel.cancel(self._call)

    def __del__(self) -> None:
        self.close()


class _Held:
    """What streams share: they are context managers and iterators over a flow, and stop it when they are left."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def cancel(self) -> None:
        """Ask the daemon to stop; from any thread. A reader that waits gets the error `cancelled`, or the end."""
        self._flow.cancel()

    def close(self) -> None:
        """Be done: cancel the request unless it has ended."""
        self._flow.close()


class Gathered:
    """What came of an answer so far; `answer` is None until the end, then all of it."""

    def __init__(self) -> None:
        self.answer: m.Answer | None = None
        self.logprobs: list[m.TokenLogprob] = []
        self._pieces: list[str] = []
        self._thoughts: list[str] = []

    @property
    def text(self) -> str:
        """What came so far."""
        return "".join(self._pieces)

    @property
    def thinking(self) -> str:
        """What was thought so far."""
        return "".join(self._thoughts)

    def _kept(self, delta: m.Delta) -> m.Delta:
        self._pieces.append(delta.text)
        self._thoughts.append(delta.thinking)
        self.logprobs += delta.logprobs
        return delta

    def _ended(self, last: m.Say) -> m.Delta | None:
        """What the daemon's last word adds, if anything; `answer` is whole then."""
        end = expect(last, m.Answer)
        rest = self._kept(m.Delta(end.text, 0, end.logprobs, end.thinking))
        whole = {"text": self.text, "logprobs": self.logprobs, "thinking": self.thinking}
        self.answer = msgspec.structs.replace(end, **whole)
        return rest if rest.text or rest.thinking else None


class Stream(_Held, Gathered):
    """The text of an answer as it comes, or all that comes (`deltas`).

    `answer` is None until the end, then all of it: text, `thinking` and `logprobs`.
    """

    def __init__(self, flow: Flow) -> None:
        _Held.__init__(self, flow)
        Gathered.__init__(self)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while (delta := self._next()) is not None:
            if delta.text or not delta.thinking:
                return delta.text
        raise StopIteration

    def deltas(self) -> Iterator[m.Delta]:
        """The pieces with what the model thinks before its text; instead of the texts alone."""
        while (delta := self._next()) is not None:
            yield delta

    def _next(self) -> m.Delta | None:
        for chunk in self._flow:
            return self._kept(expect(chunk, m.Delta))
        if self.answer is not None or self._flow.end is None:
            return None
        return self._ended(self._flow.end)


class Watch(_Held):
    """Notices as they come. `end` is None until the daemon ends the subscription."""

    end: m.EventsEnd | None = None

    def __iter__(self) -> Iterator[m.Notice]:
        return self

    def __next__(self) -> m.Notice:
        for notice in self._flow:
            return expect(notice, m.Notice)
        if self._flow.end is not None:
            self.end = expect(self._flow.end, m.EventsEnd)
        raise StopIteration
