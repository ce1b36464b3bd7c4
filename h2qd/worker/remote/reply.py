"""One answer in the making: what a server said so far, as the loop is told of it, and how it ends.

Bounds what a server may send for a request, since the other side keeps all of it, and measures what the server does
not tell. Made by `engine` for each request; filled in by the dialects.
"""

import math
import time
from collections.abc import Callable, Iterable

from h2qd.wire.limits import LOGPROBS_MAX
from h2qd.wire.workers import ChosenToken, Generate, Generated, LikelyToken, Text
from h2qd.worker.engine import Said
from h2qd.worker.remote.calls import Calls
from h2qd.worker.remote.errors import nonsense

_CHARS_PER_TOKEN_MAX = 512
_PARTS_PER_TOKEN_MAX = 4
_PARTS_BESIDE_MAX = 1024
_PIECE_CHARS_MAX = 4096
_LOGARITHM_MIN = -1e12
_COUNT_MAX = 2**53 - 1


class Reply:
    """What came of `order`; `say` hears of each text at once."""

    def __init__(self, order: Generate, say: Callable[[Said], None]) -> None:
        self._order = order
        self._say = say
        self._start_s = time.monotonic()
        self._first_s: float | None = None
        self._tokens = 0
        self._chars = 0
        self._parts = 0
        self._calls = Calls()

    def text(self, text: str, logprobs: list[ChosenToken], thinking: str = "") -> None:
        """More of the answer, of what is thought before it, or a part of the stream without any.

        Log-probabilities of nothing but thoughts are not told. Raises `RemoteError` (remote_failed) when it is more
        than was asked for.
        """
        self._parts += 1
        if self._parts > _PARTS_PER_TOKEN_MAX * self._order.max_tokens + _PARTS_BESIDE_MAX:
            raise nonsense("its answer does not end")  # whatever a model thinks counts as tokens, too
        if not text and not logprobs and not thinking:
            return
        tokens = max(1, len(logprobs))
        self._count(tokens, len(text) + len(thinking))
        told = logprobs if self._order.logprobs is not None and (text or not thinking) else []
        self._say(Text(self._order.request, text, tokens, told, thinking))

    def call(self, index: int | None, call_id: str, name: str, arguments: str) -> None:
        """A tool call, or a piece of one. Raises `RemoteError` (remote_failed) when it is more than was asked for."""
        self._count(1, len(arguments))
        self._calls.piece(index, call_id, name, arguments)

    def _count(self, tokens: int, chars: int) -> None:
        if self._first_s is None:
            self._first_s = time.monotonic()
        self._tokens += tokens
        self._chars += chars
        if self._chars > _CHARS_PER_TOKEN_MAX * (self._order.max_tokens + 1):
            raise nonsense("it answers more than it was asked for")

    def end(
        self,
        finish: str,
        *,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
        cached_tokens: int = 0,
        prefill_ms: float | None = None,
        decode_ms: float | None = None,
    ) -> Generated:
        """The last word, with the tools that were called, unless it was cancelled.

        What is None was not told: the parts of the stream are counted, and its times measured. Raises `RemoteError`
        when what was called makes no sense.
        """
        end_s = time.monotonic()
        calls = self._calls.ended(cut=finish != "stop") if finish != "cancelled" else []
        first_s = self._first_s if self._first_s is not None else end_s
        first_ms = (first_s - self._start_s) * 1000
        return Generated(
            request=self._order.request,
            finish="tool_calls" if calls and finish == "stop" else finish,
            prompt_tokens=_bounded(prompt_tokens or 0),
            completion_tokens=_bounded(self._tokens if completion_tokens is None else completion_tokens),
            cached_tokens=_bounded(cached_tokens),
            prefill_ms=first_ms if prefill_ms is None else _ms(prefill_ms),
            first_token_ms=first_ms,
            decode_ms=(end_s - first_s) * 1000 if decode_ms is None else _ms(decode_ms),
            tool_calls=calls,
        )


def likely(token: str, logprob: float) -> LikelyToken:
    """A token as a server tells it: by its text; its number is not known, so 0."""
    return LikelyToken(0, token[:_PIECE_CHARS_MAX], _logarithm(logprob))


def chosen(token: str, logprob: float, top: Iterable[LikelyToken]) -> ChosenToken:
    """A token that came, and the likeliest at its place."""
    return ChosenToken(0, token[:_PIECE_CHARS_MAX], _logarithm(logprob), list(top)[:LOGPROBS_MAX])


def _logarithm(value: float) -> float:
    return min(0.0, max(_LOGARITHM_MIN, value)) if math.isfinite(value) else _LOGARITHM_MIN


def _bounded(value: int) -> int:
    return min(_COUNT_MAX, max(0, value))


def _ms(value: float) -> float:
    return min(1e12, max(0.0, value))
