"""How a batch bears a daemon that is busy, short of memory, or away.

A refusal that says that it will pass is tried again, a bounded number of times, each wait twice the last and never
shorter than the daemon asks for. While no daemon answers, nobody tries: one asks until it serves again, the others
wait behind it, and after `wait_s` the run ends.
"""

import asyncio
from time import monotonic

from h2qctl.aio import AsyncClient
from h2qctl.errors import H2qError

RETRIES = 8
WAIT_S = 60.0
_FIRST_WAIT_S = 0.5
_WAIT_S_MAX = 30.0
_ASKED_WAIT_S_MAX = 300.0
_LOOK_S = 0.1
_LOOK_S_MAX = 2.0
_LOOK_TIMEOUT_S = 5.0
_AWAY = frozenset({"unreachable", "shutting_down"})


def wait_s(attempt: int, error: H2qError) -> float:
    """How long to wait after the attempt of this number, from 1, ended with `error`."""
    own = min(_FIRST_WAIT_S * (1 << min(attempt - 1, 16)), _WAIT_S_MAX)
    return max(own, min((error.retry_after_ms or 0) / 1000, _ASKED_WAIT_S_MAX))


def away(error: H2qError) -> bool:
    """Whether `error` says that there is no daemon, or soon none."""
    return error.code in _AWAY


class AwayError(H2qError):
    """The daemon did not come back in time."""


class Gate:
    """Open while the daemon serves. Whoever finds that it does not sets `shut`."""

    def __init__(self, client: AsyncClient, wait_s: float) -> None:
        self.shut = False
        self._client = client
        self._wait_s = wait_s
        self._asking = asyncio.Lock()
        self._gone: AwayError | None = None

    async def passed(self) -> None:
        """Return once the daemon serves. Raises `AwayError` after `wait_s`, and `H2qError` when it will not talk."""
        if not self.shut:
            return
        async with self._asking:
            if self._gone is not None:
                raise self._gone
            if self.shut:
                await self._ask()
                self.shut = False

    async def _ask(self) -> None:
        until = monotonic() + self._wait_s
        pause_s = _LOOK_S
        while True:
            try:
                if (await self._client.status(timeout=_LOOK_TIMEOUT_S)).phase == "serving":
                    return
                last = "it does not serve yet"
            except H2qError as error:
                if not error.retryable:
                    raise
                last = error.message
            if monotonic() + pause_s > until:
                text = f"cannot go on: the daemon did not come back within {self._wait_s:g} s: {last}"
                self._gone = AwayError("unreachable", text, "start the daemon; the same command then goes on")
                raise self._gone
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LOOK_S_MAX)
