"""When a request may be sent again, and when at the earliest: back-off with jitter, under a budget.

Retries are at most a tenth of the requests, after a first few, so they cannot become the load that keeps a server
down. What the server asks for (Retry-After) goes before what is computed here. Called by `server`.
"""

import random

TRIES_MAX = 4
WAIT_S_MAX = 30.0
"""For one request, in all; what would take longer is refused, and can be tried again by whoever asked."""

_FIRST_S = 0.25
_SHARE = 0.1
_RESERVE = 4.0


class Budget:
    """Tokens: a request brings a tenth of one, a retry takes a whole one."""

    def __init__(self) -> None:
        self._tokens = _RESERVE

    def earn(self) -> None:
        """A request was sent for the first time."""
        self._tokens = min(_RESERVE, self._tokens + _SHARE)

    def spend(self) -> bool:
        """Whether a retry may be sent; it is paid for then."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def delay_s(tries: int, after_s: float | None) -> float:
    """How long to wait after the n-th try (from 1). Never the same for two who failed together."""
    spread = random.random()  # noqa: S311 - no secret hangs on it
    if after_s is not None:
        return after_s + spread * _FIRST_S
    return float(_FIRST_S * 2 ** (tries - 1) * (0.5 + spread))
