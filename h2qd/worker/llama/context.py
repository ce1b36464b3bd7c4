"""A native context with its KV cache: what tokens are in it, decoding more, the logits after the last one.

One sequence (number 0) so far; a second slot will be a second sequence. Called by `slot`. Invariant: `tokens` are
exactly what the cache holds, position by position, or both are empty.
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

    `interrupted` is asked about a thousand times in each `prefill` whether to abort it, and never in `decode`:
    crossing into Python at every operation would slow each token.
    """

    def __init__(self, model: int, context: int, interrupted: Callable[[], bool]) -> None:
        self.size: int = native.llama_n_ctx(context)
        self.tokens: list[int] = []
        self._context = context
        self._memory = native.llama_get_memory(context)
        self._window: int = native.llama_model_n_swa(model)
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

        At least the prompt's last token is left to decode, for its logits. A cache that cannot go back to that
        position (recurrent state, or a sliding window whose tokens were dropped) is emptied, and 0 returned. What
        is kept was computed in other batches than a fresh prefill would use, so logits may differ in the last bits.
        """
        common = 0
        for ours, theirs in zip(self.tokens, prompt[:-1], strict=False):
            if ours != theirs:
                break
            common += 1
        if common == 0 or not self._go_back(common):
            self.clear()
            return 0
        del self.tokens[common:]
        return common

    def _go_back(self, count: int) -> bool:
        """Drop all but the first `count` positions; False when what is left is not all they need.

        llama.cpp keeps all positions between a sequence's smallest and largest (llama_kv_cache::apply_ubatch). The
        next token looks back at most `window - 1` positions in a sliding-window layer, so these must be there.
        """
        if self._window > 0:
            first = native.llama_memory_seq_pos_min(self._memory, _SEQUENCE)
            if not 0 <= first <= max(0, count - self._window):
                return False
        if not native.llama_memory_seq_rm(self._memory, _SEQUENCE, count, _TO_THE_END):
            return False
        last: int = native.llama_memory_seq_pos_max(self._memory, _SEQUENCE)
        return last == count - 1

    def clear(self) -> None:
        """Forget everything."""
        native.llama_memory_clear(self._memory, True)
        self.tokens.clear()

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
