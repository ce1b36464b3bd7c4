"""A native context with its KV cache: what tokens are in it, decoding more, the logits after the last one.

One sequence (number 0) so far; a second slot will be a second sequence, with as large a share of the context. Called
by `slot`. Invariant: `tokens` are exactly what the sequence's cache holds, position by position, or both are empty.
"""

from collections.abc import Callable, Sequence

import numpy as np
from llama_cpp import llama_cpp as native
from numpy.typing import NDArray

from h2qd.worker.llama.model import BATCH_TOKENS

_SEQUENCE = 0
_TO_THE_END = -1

NO_ROOM = 1
ABORTED = 2
"""What `llama_decode` returns, beside 0 for success and less for errors."""


class DecodeError(Exception):
    """The native decode failed; the cache was emptied. `status` is NO_ROOM, ABORTED or negative."""

    def __init__(self, status: int) -> None:
        super().__init__(f"llama_decode returned {status}")
        self.status = status


class Context:
    """Wraps a native `context` on `model`; both must outlive it, and `close` must come before they are freed.

    `size` is what one sequence may hold, in tokens. `interrupted` is asked at each operation of a `prefill`
    (hundreds) whether to abort it, and never in `decode`: a cancel can wait for one token, and every question takes
    the interpreter's lock.
    """

    def __init__(self, model: int, context: int, interrupted: Callable[[], bool]) -> None:
        self.size: int = native.llama_n_ctx_seq(context)
        self.tokens: list[int] = []
        self._context = context
        self._memory = native.llama_get_memory(context)
        self._slides = native.llama_model_n_swa(model) > 0
        self._whole = 0  # so many tokens at the beginning were computed in whole pieces of BATCH_TOKENS
        self._vocabulary: int = native.llama_vocab_n_tokens(native.llama_model_get_vocab(model))
        self._interrupted = native.ggml_abort_callback(lambda _data: interrupted())
        self._batch = native.llama_batch_init(BATCH_TOKENS, 0, 1)
        for index in range(BATCH_TOKENS):
            self._batch.n_seq_id[index] = 1
            self._batch.seq_id[index][0] = _SEQUENCE

    def close(self) -> None:
        """Free what this object allocated; not the native context."""
        native.llama_batch_free(self._batch)

    def reuse(self, prompt: Sequence[int]) -> int:
        """Keep what the cache and `prompt` begin with in common, drop the rest; how many tokens that is.

        Only as much is kept as leaves every later logit as it would be without: batches of another shape, or cells in
        another order, round differently (by up to 1.7 in a logit, measured on a Q4_K_M model), and a seed would not
        give its text again. So whole pieces of BATCH_TOKENS count, those that a fresh prefill would compute as they
        were; the last token is never among them, for its logits are wanted.
        """
        kept = _common(self.tokens[: self._whole], prompt[:-1]) // BATCH_TOKENS * BATCH_TOKENS
        if kept == 0 or not self._go_back(kept):
            self.clear()
            return 0
        del self.tokens[kept:]
        self._whole = kept
        return kept

    def _go_back(self, count: int) -> bool:
        """Drop all but the first `count` positions; False when the cache is not then as if nothing had followed.

        Recurrent state cannot go back. A sliding-window layer overwrites its oldest positions once its cells are used
        up; from then on its order differs, even where all that is needed is still there.
        """
        if self._slides and native.llama_memory_seq_pos_min(self._memory, _SEQUENCE) != 0:
            return False
        if not native.llama_memory_seq_rm(self._memory, _SEQUENCE, count, _TO_THE_END):
            return False
        last: int = native.llama_memory_seq_pos_max(self._memory, _SEQUENCE)
        return last == count - 1

    def clear(self) -> None:
        """Forget everything."""
        native.llama_memory_clear(self._memory, True)
        self.tokens.clear()
        self._whole = 0

    def prefill(self, tokens: Sequence[int]) -> None:
        """Decode up to BATCH_TOKENS tokens; the logits are those after the last. Raises `DecodeError`."""
        batch = self._batch
        start = len(self.tokens)
        for index, token in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = start + index
            batch.logits[index] = 0
        batch.logits[len(tokens) - 1] = 1
        batch.n_tokens = len(tokens)
        native.llama_set_abort_callback(self._context, self._interrupted, None)
        status = native.llama_decode(self._context, batch)
        native.llama_set_abort_callback(self._context, native.ggml_abort_callback(), None)
        self._settle(status)
        if self._whole == start and len(tokens) == BATCH_TOKENS:
            self._whole += BATCH_TOKENS
        self.tokens.extend(tokens)

    def decode(self, token: int) -> None:
        """Decode one token; the logits are those after it. Raises `DecodeError`."""
        batch = self._batch
        batch.token[0] = token
        batch.pos[0] = len(self.tokens)
        batch.logits[0] = 1
        batch.n_tokens = 1
        self._settle(native.llama_decode(self._context, batch))
        self.tokens.append(token)

    def _settle(self, status: int) -> None:
        if status != 0:
            self.clear()
            raise DecodeError(status)

    def logits(self) -> NDArray[np.float32]:
        """A writable view, shape (vocabulary,), of the logits after the last token; valid until the next decode."""
        row = native.llama_get_logits_ith(self._context, -1)
        if not row:
            raise DecodeError(-1)
        logits: NDArray[np.float32] = np.ctypeslib.as_array(row, (self._vocabulary,))
        return logits


def _common(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((index for index, (our, their) in pairs if our != their), min(len(ours), len(theirs)))
