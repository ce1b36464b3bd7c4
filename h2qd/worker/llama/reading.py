"""What work that only reads texts shares: it starts from nothing, and ends by telling what it found.

The base of `scoring` and `vectors`. No cache serves it, so when it pauses it begins the text at hand again. Called by
`batch` through `work.Work`; says nothing of what is computed.
"""

import time
from collections.abc import Sequence

from h2qd.wire.workers import EmbedTexts, GenerationFailed, Prefilling, ScoreText
from h2qd.worker.engine import Said
from h2qd.worker.llama.adapters import Used
from h2qd.worker.llama.context import ABORTED, Cache, Context, DecodeError
from h2qd.worker.llama.overflow import Gap
from h2qd.worker.llama.work import NOWHERE, TOLD_S_MIN


class Reading:
    """Reads `total` tokens for `order`, in one text after another."""

    def __init__(
        self, order: ScoreText | EmbedTexts, total: int, context: Context, adapters: Used, start_s: float
    ) -> None:
        self.request = order.request
        self.priority = order.priority
        self.session = ""
        self.arrived = 0
        self.text: Sequence[int] = ()
        self.gap: Gap | None = None
        self.adapters = adapters
        self.cache = Cache(NOWHERE)
        self.cancelled = False
        self.ended = False
        self.broken = False
        self.served = 0
        self.surplus = 0
        self._context = context
        self._total = total
        self._before = 0  # tokens of the texts that are done
        self._start_s = self._told_s = start_s

    def seat(self, cache: Cache) -> None:
        """Begin, or go on, in an empty `cache`."""
        self.cache = cache

    def pause(self) -> None:
        """What was computed of the text at hand is computed again."""
        self.cache = Cache(NOWHERE)

    def shifted(self, gap: Gap) -> None:
        """It never comes to that: a text fits, so there is no `gap`."""
        raise AssertionError(gap)

    def cancel(self) -> list[Said]:
        """End it as it was asked to."""
        return self._fail("cancelled", "the request was cancelled")

    def undecoded(self, error: DecodeError) -> list[Said]:
        """What was to be computed was not."""
        if error.status == ABORTED:  # only a cancel aborts
            return self.cancel()
        return self._fail("generation_failed", f"cannot go on: {error}")

    def close(self) -> None:
        """Nothing is held beside the cache."""
        self.ended = True

    def _next_text(self) -> None:
        """From nothing again, and with the same adapters: an empty cache is of none."""
        self._context.clear(self.cache)
        self._context.adapt(self.cache, self.adapters)

    def _progress(self) -> list[Said]:
        now_s = time.perf_counter()
        if now_s - self._told_s < TOLD_S_MIN:
            return []
        self._told_s = now_s
        return [Prefilling(self.request, self._before + len(self.cache.tokens), self._total)]

    def _break(self) -> list[Said]:
        self.broken = True
        return self._fail("generation_failed", "cannot go on: the model computed no finite numbers")

    def _fail(self, code: str, message: str) -> list[Said]:
        self.ended = True
        return [GenerationFailed(self.request, code, message)]
