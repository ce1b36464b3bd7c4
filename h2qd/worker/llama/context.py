"""A native context and its KV cache: which tokens each sequence holds, computing more, the logits asked for.

Every slot is a sequence with cells of its own. Called by `batch`; it decides nothing about who computes what.
Invariant: a `Cache`'s `tokens` are exactly what its sequence holds, position by position, also after a failure.

**What a batch's numerics allow.** Kernels round differently for batches of other shapes (by up to 1.7 in a logit,
measured on a Q4_K_M model), so the same tokens computed otherwise may choose another token. On a CPU, rows are
computed alike in blocks of at most 64 rows, whatever else the batch holds; what is left over of a block is computed
another way. So a piece of a prompt that begins where *whole* pieces end, and is a multiple of `grid` tokens in even
company, gives the same to the bit as any other cut into such pieces. `Cache.whole` counts those. What is *exact*
reuses nothing else, and so gives each later logit as it would be without a cache.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from llama_cpp import llama_cpp as native
from numpy.typing import NDArray

from h2qd.worker.llama.crew import Crew
from h2qd.worker.llama.model import Model

GRID_TOKENS_CPU = 64
"""ggml's CPU kernels tile attention by 64 rows and matrix products by 4 or 8."""

REUSED_TOKENS_MIN = 16
"""Fewer are no sign that texts belong together: all begin with the same token, chats with the same few."""

_TO_THE_END = -1
_COMPARED_AT_ONCE = 1024

NO_ROOM = 1
ABORTED = 2
"""What `llama_decode` returns, beside 0 for success and less for errors."""


class DecodeError(Exception):
    """The native decode failed; nothing of it is in the caches. `status` is NO_ROOM, ABORTED or negative."""

    def __init__(self, status: int) -> None:
        super().__init__(f"llama_decode returned {status}")
        self.status = status


@dataclass(slots=True, eq=False)
class Cache:
    """One sequence's tokens, of which the first `whole` were computed in whole pieces. Changed by `Context` only."""

    sequence: int
    tokens: list[int] = field(default_factory=list)
    whole: int = 0


class Piece(NamedTuple):
    """Tokens that come next in a sequence; `wanted`: the logits after the last of them."""

    cache: Cache
    tokens: Sequence[int]
    wanted: bool


class Context:
    """Wraps the context of `model`, which must outlive it; `close` must come before that is freed.

    `size` is what one sequence may hold, in tokens. `interrupted` is asked at each operation (hundreds) of an
    interruptible decode whether to abort it; every question takes the interpreter's lock.
    """

    def __init__(self, model: Model, interrupted: Callable[[], bool]) -> None:
        self._context = context = model.context
        self.size: int = native.llama_n_ctx_seq(context)
        self.batch = model.batch
        # Which shapes a GPU's library computes alike is not known, so only full pieces count there.
        self.grid = GRID_TOKENS_CPU if model.device == "cpu" else model.batch
        self.caches = [Cache(sequence) for sequence in range(native.llama_n_seq_max(context))]
        self._memory = native.llama_get_memory(context)
        self._window: int = native.llama_model_n_swa(model.model)
        self._recurrent = bool(
            native.llama_model_is_recurrent(model.model) or native.llama_model_is_hybrid(model.model)
        )
        self._vocabulary: int = native.llama_vocab_n_tokens(native.llama_model_get_vocab(model.model))
        self._crew = Crew(
            model.threads,
            lambda count: native.llama_set_n_threads(context, count, count),
            adapts=model.adapts,
        )
        self._interrupted = native.ggml_abort_callback(lambda _data: interrupted())
        self._batch = batch = native.llama_batch_init(self.batch, 0, 1)
        for index in range(self.batch):
            batch.n_seq_id[index] = 1
        # Looked up once: through the structure, each access makes a new pointer.
        self._tokens, self._positions, self._outputs = batch.token, batch.pos, batch.logits
        self._sequences = [batch.seq_id[index] for index in range(self.batch)]

    def close(self) -> None:
        """Free what this object allocated; not the native context."""
        native.llama_batch_free(self._batch)

    # --- what is kept -------------------------------------------------------------------------------

    def reusable(self, cache: Cache, prompt: Sequence[int], *, exact: bool) -> int:
        """How many of the first tokens of `prompt` the cache can serve; never the last one: its logits are wanted.

        `exact`: only as many as leave every later logit as it would be without a cache. Otherwise all that are there,
        with the rounding of whatever batch computed them.
        """
        if exact:
            kept = common(cache.tokens[: cache.whole], prompt[:-1]) // self.grid * self.grid
        else:
            kept = common(cache.tokens, prompt[:-1])
        return kept if kept >= REUSED_TOKENS_MIN and self._reaches_back(cache, kept, exact=exact) else 0

    def _reaches_back(self, cache: Cache, count: int, *, exact: bool) -> bool:
        """Whether the sequence can go on after its first `count` tokens as if nothing had followed them.

        Recurrent state cannot go back. A sliding-window layer overwrites its oldest positions once its cells are used
        up: from then on it can go back only while the window before `count` is there, and its cells are in another
        order, which rounds differently.
        """
        if self._recurrent:
            return not exact and count == len(cache.tokens)
        if self._window == 0 or (not exact and count == len(cache.tokens)):
            return True
        oldest: int = native.llama_memory_seq_pos_min(self._memory, cache.sequence)
        return oldest == 0 if exact else 0 <= oldest <= max(0, count - self._window)

    def keep(self, cache: Cache, count: int) -> int:
        """Drop all but the first `count` tokens, which `reusable` said; how many are left: 0 where that fails."""
        if count == len(cache.tokens):
            return count
        if count == 0 or not native.llama_memory_seq_rm(self._memory, cache.sequence, count, _TO_THE_END):
            self.clear(cache)
            return 0
        del cache.tokens[count:]
        cache.whole = min(cache.whole, count) // self.grid * self.grid
        if not self.agrees(cache):
            self.clear(cache)
        return len(cache.tokens)

    def clear(self, cache: Cache) -> None:
        """Forget a sequence."""
        native.llama_memory_seq_rm(self._memory, cache.sequence, 0, _TO_THE_END)
        cache.tokens.clear()
        cache.whole = 0

    def clear_all(self) -> None:
        """Forget every sequence, and overwrite the cells: numbers that are none would live on in what is masked."""
        native.llama_memory_clear(self._memory, True)
        for cache in self.caches:
            cache.tokens.clear()
            cache.whole = 0

    @property
    def copies(self) -> bool:
        """Whether `copy` can be used: recurrent state is of one point in a text, and that is seldom the right one."""
        return not self._recurrent

    def copy(self, source: Cache, target: Cache) -> None:
        """Make `target` hold what `source` holds. The library moves the data, a whole share, with the next decode."""
        native.llama_memory_seq_cp(self._memory, source.sequence, target.sequence, -1, _TO_THE_END)
        target.tokens[:] = source.tokens
        target.whole = source.whole

    def agrees(self, cache: Cache) -> bool:
        """Whether the native cache ends where `cache` does. What holds after every call here."""
        last: int = native.llama_memory_seq_pos_max(self._memory, cache.sequence)
        return last == len(cache.tokens) - 1

    # --- computing ----------------------------------------------------------------------------------

    def decode(self, pieces: Sequence[Piece], *, interruptible: bool = False) -> list[int]:
        """Compute up to `batch` tokens; for each piece, the row of its last token, to ask `logits` for.

        `pieces` are of different sequences, in their order: the library computes neighbours together, and of each
        only as many tokens as the shortest piece has; so pieces of one length go best together. Raises `DecodeError`.
        """
        at = 0
        rows = []
        for cache, tokens, wanted in pieces:
            position = len(cache.tokens)
            for token in tokens:
                self._tokens[at] = token
                self._positions[at] = position
                self._sequences[at][0] = cache.sequence
                self._outputs[at] = 0
                at += 1
                position += 1
            self._outputs[at - 1] = wanted
            rows.append(at - 1)
        self._batch.n_tokens = at
        self._crew.muster()
        self._settle(self._run(interruptible=interruptible), pieces)
        even = len({len(piece.tokens) for piece in pieces}) == 1
        for cache, tokens, _ in pieces:
            if even and cache.whole == len(cache.tokens) and len(tokens) % self.grid == 0:
                cache.whole += len(tokens)
            cache.tokens.extend(tokens)
        return rows

    def _run(self, *, interruptible: bool) -> int:
        if interruptible:
            native.llama_set_abort_callback(self._context, self._interrupted, None)
        status: int = native.llama_decode(self._context, self._batch)
        if interruptible:
            native.llama_set_abort_callback(self._context, native.ggml_abort_callback(), None)
        native.llama_synchronize(self._context)  # so that who measures this call measures its work
        return status

    def _settle(self, status: int, pieces: Sequence[Piece]) -> None:
        """After a failure part of the batch may be in the cache; an abort takes back what it had begun."""
        if status == 0:
            return
        for piece in pieces:
            # A window may have lost what the tokens before need; recurrent state has gone on.
            intact = status == ABORTED and len(pieces) == 1 and self._window == 0 and not self._recurrent
            if not (intact and self.agrees(piece.cache)):
                self.clear(piece.cache)
        raise DecodeError(status)

    def logits(self, row: int) -> NDArray[np.float32]:
        """A writable view, shape (vocabulary,), of the logits of a wanted row; valid until the next decode."""
        address = native.llama_get_logits_ith(self._context, row)
        if not address:
            raise DecodeError(-1)
        logits: NDArray[np.float32] = np.ctypeslib.as_array(address, (self._vocabulary,))
        return logits


def common(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens both begin with."""
    length = min(len(ours), len(theirs))
    for start in range(0, length, _COMPARED_AT_ONCE):
        end = min(start + _COMPARED_AT_ONCE, length)
        if ours[start:end] != theirs[start:end]:
            return next(index for index in range(start, end) if ours[index] != theirs[index])
    return length
