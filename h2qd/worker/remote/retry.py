"""When a request is sent again: back-off with jitter, by tenacity, under a budget that one server's requests share.

Retries are at most a tenth of the requests, after a first few, so they cannot become the load that keeps a server
down. What the server asks for (Retry-After) goes before the back-off. Only an error that says so itself
(`RemoteError.again`) is tried again. Called by `server`, in its event loop only.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState
from tenacity.retry import retry_if_exception
from tenacity.stop import stop_after_attempt, stop_any, stop_base, stop_before_delay
from tenacity.wait import wait_random, wait_random_exponential

from h2qd.worker.remote.errors import RemoteError

TRIES_MAX = 4
WAIT_S_MAX = 30.0
"""For one request, in all; what would take longer is refused, and can be tried again by whoever asked."""

_FIRST_S = 0.5
"""The longest back-off after the first try; each further one is up to twice as long."""
_APART_S = 0.25
"""Those whom a server told the same time come back within so long."""
_SHARE = 0.1
_RESERVE = 4.0

T = TypeVar("T")


class _Budget(stop_base):
    """Tokens: a request brings a tenth of one, a retry takes a whole one."""

    def __init__(self) -> None:
        self._tokens = _RESERVE

    def earn(self) -> None:
        """A request is sent for the first time."""
        self._tokens = min(_RESERVE, self._tokens + _SHARE)

    def __call__(self, _: RetryCallState) -> bool:
        """Whether there is none left for a retry; else it is paid for, so this is to be asked last."""
        if self._tokens < 1:
            return True
        self._tokens -= 1
        return False


class Retries:
    """Sends the requests of one server; `sleep` waits for a number of seconds."""

    def __init__(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._budget = _Budget()
        self._rule = AsyncRetrying(
            sleep,
            retry=retry_if_exception(_may_help),
            wait=_pause,
            stop=stop_any(stop_after_attempt(TRIES_MAX), stop_before_delay(WAIT_S_MAX), self._budget),
            reraise=True,
        )

    async def run(self, send: Callable[[], Awaitable[T]]) -> T:
        """What `send` returns, or raised last."""

        async def attempt() -> T:  # what is no coroutine function is not awaited there
            return await send()

        self._budget.earn()
        return await self._rule.copy()(attempt)  # a copy, since what one run has come to is kept in it


def _may_help(error: BaseException) -> bool:
    return isinstance(error, RemoteError) and error.again


_back_off = wait_random_exponential(multiplier=_FIRST_S, max=WAIT_S_MAX)
_spread = wait_random(0, _APART_S)


def _pause(state: RetryCallState) -> float:
    """Never the same for two who failed together."""
    error = state.outcome.exception() if state.outcome is not None else None
    if isinstance(error, RemoteError) and error.after_s is not None:
        return error.after_s + _spread(state)
    return _back_off(state)
