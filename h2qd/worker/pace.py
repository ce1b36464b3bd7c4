"""How many prompt tokens one pass may take, so that streams that run beside it hardly notice.

Pure. Called by the engines' batches, which say how long passes took. While somebody decodes, a pass of prompts may
take little longer than a pass of tokens: a stream's gaps then grow to two and a half times at most, and prompts still
get about half of the time. Where more wait than decode, each counts alike: a lone stream beside seven newcomers gets
an eighth of the time until they decode too, for larger pieces cost less. Invariant: prompts always get something.
"""

DELAY_RATIO = 1.4
"""A pass of prompts between two tokens of a stream, against the pass that computes those tokens."""

DELAY_S_MAX = 0.150
"""A stream whose company is large goes on after this at the latest, unless its own passes take longer."""

DELAY_S_MIN = 0.010
"""Nobody sees less than this; on a fast device smaller passes would only waste it."""

TOKENS_STEP = 4
"""Kernels compute rows in blocks of 4: fewer cost as much."""

_START_TOKENS = 16
_GROWTH_MAX = 2
_FIXED_RATIO = 0.3
"""So much of a pass of tokens is spent on any pass, however small (measured). Only guides the way to the right size:
once a pass takes as long as it may, it stays."""

_WEIGHT = 0.2
"""Of the newest measurement in a mean."""

_SURPRISE_MAX = 2
"""A measurement counts as no more than so many means: a busy moment of the device is none of a pass's doing."""


class Pace:
    """Knows what passes took lately; a batch holds `tokens_max`."""

    def __init__(self, tokens_max: int) -> None:
        self._tokens_max = tokens_max
        self._decode_s = 0.0  # 0: not known yet
        self._token_s = 0.0  # a prompt token's part of a pass, without what is fixed
        self._last = _START_TOKENS

    def decoded(self, took_s: float) -> None:
        """A pass of one token for each stream took so long."""
        self._decode_s = smoothed(self._decode_s, took_s)

    def prefilled(self, tokens: int, took_s: float) -> None:
        """A pass of so many prompt tokens, between tokens of streams, took so long."""
        self._token_s = smoothed(self._token_s, max(took_s / 2, took_s - _FIXED_RATIO * self._decode_s) / tokens)

    def between_tokens(self, crowding: float = 0.0) -> int:
        """Prompt tokens that a pass may take while somebody decodes; `crowding`: how many wait for each who does."""
        if self._decode_s and self._token_s:
            delay_s = max(DELAY_S_MIN, DELAY_RATIO * self._decode_s, min(crowding * self._decode_s, DELAY_S_MAX))
            steps = int((delay_s - _FIXED_RATIO * self._decode_s) / self._token_s / TOKENS_STEP)
            self._last = max(TOKENS_STEP, min(steps * TOKENS_STEP, self._last * _GROWTH_MAX, self._tokens_max))
        return self._last


def smoothed(mean: float, newest: float) -> float:
    """A mean of what was measured lately; `mean` 0: this is the first."""
    return newest if mean == 0 else mean + _WEIGHT * (min(newest, mean * _SURPRISE_MAX) - mean)
