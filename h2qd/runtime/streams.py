"""What a stream still has to say: text or notices that wait for the client's credit.

Slow readers slow nobody: text that may not be sent yet is merged into one later chunk (an answer is bounded by its
max_tokens), notices beyond a bound are dropped, oldest first, and counted. Pure buffers; `calls` sends them.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from h2qd.wire.limits import NOTICES_KEPT
from h2qd.wire.messages import Delta, Notice, TokenLogprob


class Outlet(Protocol):
    """Something that chunks are taken from."""

    def take(self) -> Struct | None:
        """The next chunk, or None when there is nothing to say now."""


class TextOutlet:
    """The text of an answer: all of it that was not taken yet, as one piece."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._tokens = 0
        self.tokens_seen = 0

    def add(self, text: str, tokens: int, logprobs: Sequence[TokenLogprob] = (), thinking: str = "") -> None:
        """More text of the answer, or of what is thought before it."""
        self._texts.append(text)
        self._thoughts.append(thinking)
        self._logprobs += logprobs
        self._tokens += tokens
        self.tokens_seen += tokens

    def take(self) -> Delta | None:
        """All the text since the last take."""
        if not self._texts:
            return None
        delta = Delta("".join(self._texts), self._tokens, self._logprobs, "".join(self._thoughts))
        self._texts, self._thoughts, self._logprobs, self._tokens = [], [], [], 0
        return delta


class NoticeOutlet:
    """Notices for one reader, at most `NOTICES_KEPT` of them waiting."""

    def __init__(self, earlier: Iterable[Notice] = ()) -> None:
        self._waiting: deque[Notice] = deque(earlier)
        self._missed = 0

    def add(self, notice: Notice) -> None:
        """Something happened."""
        if len(self._waiting) >= NOTICES_KEPT:
            self._waiting.popleft()
            self._missed += 1
        self._waiting.append(notice)

    def take(self) -> Notice | None:
        """The oldest notice, with the number of those lost before it."""
        if not self._waiting:
            return None
        notice, missed = self._waiting.popleft(), self._missed
        self._missed = 0
        return replace(notice, missed=missed) if missed else notice
