"""How fast a server may be asked: the configured rate, and what the server itself says of its limits.

A request waits for its turn here, at most `retry.WAIT_S_MAX`. Reads Retry-After (RFC 9110, 10.2.3: seconds or a date)
and OpenAI's x-ratelimit headers. Called by `server`, in its event loop only.
"""

import asyncio
import re
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from h2qd.worker.remote.errors import RemoteError
from h2qd.worker.remote.retry import WAIT_S_MAX
from h2qd.worker.remote.transport import Answer

_SPAN = re.compile(r"(?:(\d{1,6})h)?(?:(\d{1,6})m(?!s))?(?:(\d{1,6}(?:\.\d{1,6})?)s)?(?:(\d{1,6}(?:\.\d{1,6})?)ms)?")
_SECONDS = re.compile(r"\d{1,9}(?:\.\d{1,6})?")


class Pace:
    """Turns of requests. `rate_per_min` 0: as fast as they come."""

    def __init__(self, rate_per_min: int) -> None:
        self._apart_s = 60 / rate_per_min if rate_per_min else 0.0
        self._next_s = 0.0
        self._not_before_s = 0.0

    async def turn(self) -> None:
        """Wait until the next request may go. Raises `RemoteError` (queue_full) when that is too far away."""
        now_s = time.monotonic()
        at_s = max(now_s, self._next_s, self._not_before_s)
        if at_s - now_s > WAIT_S_MAX:
            text = f"the server's rate is used up: it may be asked again in {at_s - now_s:.0f} s"
            raise RemoteError("queue_full", text, after_s=at_s - now_s)
        self._next_s = at_s + self._apart_s
        await asyncio.sleep(at_s - now_s)

    def heed(self, answer: Answer) -> float | None:
        """Keep to what `answer` says of limits; its Retry-After in seconds, if it has one."""
        after_s = _retry_after_s(answer.header("retry-after")) if answer.status in (429, 503) else None
        wait_s = after_s or 0.0
        for kind in ("requests", "tokens"):
            if answer.header(f"x-ratelimit-remaining-{kind}") == "0":
                wait_s = max(wait_s, span_s(answer.header(f"x-ratelimit-reset-{kind}")))
        if wait_s > 0:
            self._not_before_s = max(self._not_before_s, time.monotonic() + wait_s)
        return after_s


def span_s(text: str) -> float:
    """`6m0s`, `1.5s`, `20ms` or plain seconds, in seconds; 0 for anything else."""
    if _SECONDS.fullmatch(text):
        return float(text)
    parts = _SPAN.fullmatch(text)
    if parts is None:
        return 0.0
    hours, minutes, seconds, millis = (float(part or 0) for part in parts.groups())
    return hours * 3600 + minutes * 60 + seconds + millis / 1000


def _retry_after_s(text: str) -> float | None:
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, IndexError, TypeError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
