"""What a chain of native samplers chooses among: all tokens of a vocabulary, or those that it can only choose among.

A chain that begins with the k likeliest is handed few more than those: picking them from a vocabulary of 262,144
takes a tenth of what handing all of them over takes (measured: 0.5 ms for each token of each stream), and megabytes
less. Called by `sampler`, one object a request. Invariant: the k highest logits are always among the candidates.
"""

import ctypes

import numpy as np
from llama_cpp import llama_cpp as native
from numpy.typing import NDArray

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])

_MARGIN = 12.0
"""How far below the highest logit candidates are looked for at first."""

_TRIES = 2
_WIDEN = 1.3
"""How much wider the margin is than the k likeliest were at the token before; or, too narrow, than it was."""

_SMALL = 16
"""Times k: a vocabulary that is handed over whole."""


class Candidates:
    """Filled anew for each token. `likeliest`: how many of them the chain keeps first; 0: it does not begin so."""

    def __init__(self, size: int, likeliest: int) -> None:
        self.array = native.llama_token_data_array()
        self._size = size
        self._likeliest = likeliest if likeliest * _SMALL < size else 0
        self._margin = _MARGIN
        self._all: NDArray[np.int32] | None = None  # every token's number, once that was asked for
        self._table = np.empty(0, dtype=_CANDIDATE)  # what `array` points into

    def highest(self) -> float:
        """The highest logit among them, or -inf."""
        return float(self._table["logit"].max(initial=-np.inf))

    def fill(self, logits: NDArray[np.float32], highest: float) -> None:
        """Those that the chain can choose among; `highest` is the maximum of `logits`."""
        for _ in range(_TRIES if self._likeliest else 0):
            tokens = np.flatnonzero(logits >= highest - self._margin)
            if tokens.size >= self._likeliest:
                found = logits[tokens]
                self._margin = _WIDEN * (highest - float(np.partition(found, -self._likeliest)[-self._likeliest]))
                self._set(tokens, found)
                return
            self._margin = max(_MARGIN, self._margin * _WIDEN)
        self.fill_all(logits)

    def fill_all(self, logits: NDArray[np.float32]) -> None:
        """Every token."""
        if self._all is None:
            self._all = np.arange(self._size, dtype=np.int32)
        self._set(self._all, logits)

    def _set(self, tokens: NDArray[np.int64] | NDArray[np.int32], logits: NDArray[np.float32]) -> None:
        if self._table.size != tokens.size:
            self._table = np.zeros(tokens.size, dtype=_CANDIDATE)
        self._table["id"] = tokens
        self._table["logit"] = logits
        self.array.data = ctypes.cast(self._table.ctypes.data, ctypes.POINTER(native.llama_token_data))
        self.array.size = tokens.size
        self.array.selected = -1
        self.array.sorted = False
