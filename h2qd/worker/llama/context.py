"""A native context and its KV cache: which tokens each sequence holds, computing more, the outputs asked for.

Every slot is a sequence with cells of its own. Called by `batch`; it decides nothing about who computes what.
Invariant: a `Cache`'s `tokens` are exactly what its sequence holds, position by position, also after a failure.

**What a batch's numerics allow.** Kernels round differently for batches of other shapes (by up to 1.7 in a logit,
measured on a Q4_K_M model), so the same tokens computed otherwise may choose another token. On a CPU, rows are
computed alike in blocks of at most 64 rows, whatever else the batch holds; what is left over of a block is computed
another way. So a piece of a prompt that begins where *whole* pieces end, and is a multiple of `grid` tokens in even
company, gives the same to the bit as any other cut into such pieces. `Cache.whole` counts those. What is *exact*
reuses nothing else, and so gives each later logit as it would be without a cache.
"""

import ctypes
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from llama_cpp import llama_cpp as native
from numpy.typing import NDArray

from h2qd.worker.crew import Crew
from h2qd.worker.llama import adapters as _adapters
from h2qd.worker.llama.adapters import NONE, Used
from h2qd.worker.llama.model import Model
from h2qd.worker.llama.overflow import Gap
from h2qd.worker.placement import REUSED_TOKENS_MIN, common

GRID_TOKENS_CPU = 64
"""ggml's CPU kernels tile attention by 64 rows and matrix products by 4 or 8."""

STATE_HEAD = struct.Struct("=III")
TOKEN_BYTES = 4
"""A saved sequence begins with a magic number, a version and the number of tokens, then come these."""

_WINDOW_ONLY = native.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
_TO_THE_END = -1

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
    """One sequence's tokens, of which the first `whole` were computed in whole pieces. Changed by `Context` only.

    `clean`: those after so many first ones were computed after text that was dropped since; None: none were.
    `adapters`: those that all of them were computed with, and what comes next is.
    """

    sequence: int
    tokens: list[int] = field(default_factory=list)
    whole: int = 0
    clean: int | None = None
    adapters: Used = NONE


class Piece(NamedTuple):
    """Tokens that come next in a sequence; `wanted`: the outputs of so many of the last of them.

    An output is the logits after a token, or what the last layer says of it: its `vector`.
    """

    cache: Cache
    tokens: Sequence[int]
    wanted: int
    vector: bool = False


class Context:
    """Wraps the context of `model`, which must outlive it; `close` must come before that is freed.

    `size` is what one sequence may hold, in tokens. `interrupted` is asked at each operation (hundreds) of an
    interruptible decode whether to abort it; every question takes the interpreter's lock.
    """

    def __init__(self, model: Model, interrupted: Callable[[], bool]) -> None:
        self._context = context = model.context
        self.size: int = native.llama_n_ctx_seq(context)
        self.batch = min(model.batch, native.llama_n_batch(context))  # no more than a small context was asked for
        self.outputs = model.outputs
        # Which shapes a GPU's library computes alike is not known, so only full pieces count there.
        self.grid = GRID_TOKENS_CPU if model.device == "cpu" else self.batch
        self.caches = [Cache(sequence) for sequence in range(native.llama_n_seq_max(context))]
        self._memory = native.llama_get_memory(context)
        self._window: int = native.llama_model_n_swa(model.model)
        self._recurrent = bool(
            native.llama_model_is_recurrent(model.model) or native.llama_model_is_hybrid(model.model)
        )
        self._loaded = model.adapters
        self._applied = NONE  # what the native context computes with
        self._moving: set[int] = set()  # sequences that the next decode changes, or needs as they are
        self._vocabulary: int = native.llama_vocab_n_tokens(native.llama_model_get_vocab(model.model))
        self._crew = Crew(
            model.threads,
            lambda count: native.llama_set_n_threads(context, count, count),
            adapts=model.adapts,
        )
        self._width: int = native.llama_model_n_embd_out(model.model)
        self._interrupted = native.ggml_abort_callback(lambda _data: interrupted())
        self._batch = batch = native.llama_batch_init(self.batch, 0, 1)
        for index in range(self.batch):
            batch.n_seq_id[index] = 1
        # Looked up once: through the structure, each access makes a new pointer.
        self._tokens, self._positions, self._wanted = batch.token, batch.pos, batch.logits
        self._sequences = [batch.seq_id[index] for index in range(self.batch)]

    def close(self) -> None:
        """Free what this object allocated; not the native context."""
        native.llama_batch_free(self._batch)

    # --- what is kept -------------------------------------------------------------------------------

    def reusable(self, cache: Cache, prompt: Sequence[int], adapters: Used = NONE, *, exact: bool) -> int:
        """How many of the first tokens of `prompt` the cache can serve; never the last one: its logits are wanted.

        None that other adapters computed.

        `exact`: only as many as leave every later logit as it would be without a cache. Otherwise all that are there,
        with the rounding of whatever batch computed them.
        """
        if cache.adapters != adapters:
            return 0
        if exact:
            kept = common(cache.tokens[: cache.whole], prompt[:-1]) // self.grid * self.grid
        else:
            kept = common(cache.tokens[: cache.clean], prompt[:-1])
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
        if cache.clean is not None and count <= cache.clean:
            cache.clean = None
        if not self.agrees(cache):
            self.clear(cache)
        return len(cache.tokens)

    @property
    def trims(self) -> bool:
        """Whether `trim` can be used. Recurrent state cannot go back."""
        return not self._recurrent

    def trim(self, cache: Cache, count: int) -> bool:
        """Take back the last tokens, but for the first `count`, of the latest decode. False: all had to go.

        A sliding window loses no position that the token before that decode still saw, so it reaches back that far.
        """
        if not self._reaches_back(cache, count, exact=False):
            self.clear(cache)
        return self.keep(cache, count) == count

    @property
    def adapts(self) -> bool:
        """Whether sequences can differ in their adapters: there are some."""
        return bool(self._loaded)

    def adapt(self, cache: Cache, adapters: Used) -> None:
        """Have what comes in a sequence computed with these; what it holds was."""
        if cache.tokens and cache.adapters != adapters:
            raise RuntimeError("the cells of a sequence are of one set of adapters")
        cache.adapters = adapters

    def mark(self, adapters: Used) -> str:
        """What tells this set from any other, for files that outlive the model."""
        return _adapters.mark(adapters, self._loaded)

    def clear(self, cache: Cache) -> None:
        """Forget a sequence."""
        native.llama_memory_seq_rm(self._memory, cache.sequence, 0, _TO_THE_END)
        _empty(cache)

    def clear_all(self) -> None:
        """Forget every sequence, and overwrite the cells: numbers that are none would live on in what is masked."""
        native.llama_memory_clear(self._memory, True)
        for cache in self.caches:
            _empty(cache)

    @property
    def copies(self) -> bool:
        """Whether `copy` can be used: recurrent state is of one point in a text, and that is seldom the right one."""
        return not self._recurrent

    def copy(self, source: Cache, target: Cache) -> None:
        """Make `target` hold what `source` holds. The library moves the data, a whole share, with the next decode."""
        native.llama_memory_seq_cp(self._memory, source.sequence, target.sequence, -1, _TO_THE_END)
        target.tokens[:] = source.tokens
        target.whole, target.clean, target.adapters = source.whole, source.clean, source.adapters
        self._moving |= {source.sequence, target.sequence}

    @property
    def unshiftable(self) -> str:
        """Why `shift` cannot be used; empty: it can."""
        if self._recurrent:
            return "its state is of all tokens at once and forgets none"
        if native.llama_memory_can_shift(self._memory):
            return ""
        return "its sliding window is shorter than the context" if self._window else "its positions cannot be moved"

    def shift(self, cache: Cache, gap: Gap) -> None:
        """Drop the tokens of `gap`; those after it move up, with the next decode. Not where it is `unshiftable`."""
        start, length = gap
        after = start + length
        native.llama_memory_seq_rm(self._memory, cache.sequence, start, after)
        native.llama_memory_seq_add(self._memory, cache.sequence, after, _TO_THE_END, -length)
        del cache.tokens[start:after]
        cache.whole = min(cache.whole, start) // self.grid * self.grid
        cache.clean = start if cache.clean is None else min(start, cache.clean)
        self._moving.add(cache.sequence)

    def agrees(self, cache: Cache) -> bool:
        """Whether the native cache ends where `cache` does. What holds after every call here."""
        last: int = native.llama_memory_seq_pos_max(self._memory, cache.sequence)
        return last == len(cache.tokens) - 1

    # --- on disk -----------------------------------------------------------------------------------

    def settled(self, cache: Cache) -> bool:
        """Whether the cells are what `cache` says: a copy or a shift is done with the next decode."""
        return cache.sequence not in self._moving

    def state_bytes(self, cache: Cache) -> int:
        """How many bytes `save` is going to write."""
        cells: int = native.llama_state_seq_get_size(self._context, cache.sequence)
        return cells + STATE_HEAD.size + len(cache.tokens) * TOKEN_BYTES

    def save(self, cache: Cache, path: str) -> int:
        """Write a settled sequence to the file at `path`, layer by layer; how many bytes, 0 where that fails."""
        tokens = (native.llama_token * len(cache.tokens))(*cache.tokens)
        written: int = native.llama_state_seq_save_file(
            self._context, path.encode(), cache.sequence, tokens, len(tokens)
        )
        return written

    def restore(self, cache: Cache, path: str, tokens: Sequence[int], whole: int, adapters: Used) -> bool:
        """Make a settled `cache` what the file at `path` holds, whose bytes are as they were saved: `tokens`.

        They were computed with `adapters`.

        Where that fails (another KV type, another number of sequences), the cache is empty.
        """
        self.clear(cache)
        room = (native.llama_token * len(tokens))()
        count = ctypes.c_size_t()
        read = native.llama_state_seq_load_file(
            self._context, path.encode(), cache.sequence, room, len(room), ctypes.byref(count)
        )
        if read and list(room[: count.value]) == list(tokens):
            cache.tokens[:] = tokens
            cache.whole, cache.adapters = whole, adapters
        if not cache.tokens or not self.agrees(cache):
            self.clear(cache)
        return bool(cache.tokens)

    @property
    def slides(self) -> int:
        """Longer texts than this lose cells of a sliding window when they are saved; 0: there is no such limit."""
        return 0 if self._recurrent else self._window

    def window_bytes(self, cache: Cache) -> int:
        """What `straighten` needs."""
        size: int = native.llama_state_seq_get_size_ext(self._context, cache.sequence, _WINDOW_ONLY)
        return size

    def straighten(self, cache: Cache, room: ctypes.Array[ctypes.c_uint8]) -> bool:
        """Put the cells of a settled sequence's window into the order that they have after `restore`.

        Sums over cells in another order are rounded differently. `room` is of `window_bytes`. Where this fails, the
        cache is empty.
        """
        sequence = cache.sequence
        done = native.llama_state_seq_get_data_ext(
            self._context, room, len(room), sequence, _WINDOW_ONLY
        ) and native.llama_state_seq_set_data_ext(self._context, room, len(room), sequence, _WINDOW_ONLY)
        if not done or not self.agrees(cache):
            self.clear(cache)
        return bool(cache.tokens)

    # --- computing ----------------------------------------------------------------------------------

    def decode(self, pieces: Sequence[Piece], *, interruptible: bool = False) -> list[range]:
        """Compute up to `batch` tokens; for each piece, the rows of its wanted tokens, for `logits` or `vector`.

        At most `outputs` tokens are wanted in all; where a vector is, the library has all tokens of the batch as
        outputs, so there are no more. `pieces` are of different sequences, in their order: the library computes
        neighbours together, and of each only as many tokens as the shortest piece has; so pieces of one length go
        best together. All sequences have the same adapters. Raises `DecodeError`.
        """
        at = 0
        rows = []
        for cache, tokens, wanted, _ in pieces:
            position = len(cache.tokens)
            for token in tokens:
                self._tokens[at] = token
                self._positions[at] = position
                self._sequences[at][0] = cache.sequence
                self._wanted[at] = 0
                at += 1
                position += 1
            rows.append(range(at - wanted, at))
            for row in rows[-1]:
                self._wanted[row] = 1
        self._batch.n_tokens = at
        vectors = any(piece.vector for piece in pieces)
        if (at if vectors else sum(piece.wanted for piece in pieces)) > self.outputs:
            raise RuntimeError("the library would end the process at so many outputs")
        self._apply({piece.cache.adapters for piece in pieces} if self._loaded else {NONE})
        self._crew.muster()
        self._settle(self._run(interruptible=interruptible, vectors=vectors), pieces)
        even = len({len(piece.tokens) for piece in pieces}) == 1
        for cache, tokens, _, _ in pieces:
            if even and cache.whole == len(cache.tokens) and len(tokens) % self.grid == 0:
                cache.whole += len(tokens)
            cache.tokens.extend(tokens)
        return rows

    def _apply(self, sets: set[Used]) -> None:
        (adapters,) = sets
        if adapters != self._applied:
            _adapters.apply(self._context, adapters, self._loaded)
            self._applied = adapters

    def _run(self, *, interruptible: bool, vectors: bool) -> int:
        if interruptible:
            native.llama_set_abort_callback(self._context, self._interrupted, None)
        if vectors:
            native.llama_set_embeddings(self._context, True)
        status: int = native.llama_decode(self._context, self._batch)
        if vectors:
            native.llama_set_embeddings(self._context, False)
        if interruptible:
            native.llama_set_abort_callback(self._context, native.ggml_abort_callback(), None)
        if status >= 0:  # an error comes before anything is moved
            self._moving.clear()
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

    def vector(self, row: int) -> NDArray[np.float32]:
        """What the last layer says of a wanted row of a vector's piece; a view, valid until the next decode."""
        address = native.llama_get_embeddings_ith(self._context, row)
        if not address:
            raise DecodeError(-1)
        vector: NDArray[np.float32] = np.ctypeslib.as_array(address, (self._width,))
        return vector


def _empty(cache: Cache) -> None:
    cache.tokens.clear()
    cache.whole, cache.clean, cache.adapters = 0, None, NONE
