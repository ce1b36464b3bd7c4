"""The cells of one slot: the tokens of one sequence, and their keys and values, layer by layer.

There is room for all that a request may need, of which only what is written to becomes memory; the library's own
cache makes a copy of itself for each token, which costs most of a step in a long context. What a request leaves
behind stays, so that another one that begins with the same text goes on from there. Called by `model`, which
computes, and by `seating` and `sessions`. Invariant: `Cells.tokens` are exactly what every layer holds, position by
position, also after a pass that was interrupted.

**What is exact.** Kernels round differently for passes of other shapes, so the same tokens computed otherwise may
choose another token. Keys and values of a pass of `grid` tokens that begins where such passes end are those that any
other request with this beginning would compute. `Cells.whole` counts them.
"""

from collections.abc import Sequence
from typing import Any

from h2qd.worker.placement import REUSED_TOKENS_MIN, common
from h2qd.worker.torch.libraries import torch, transformers


class Layer(transformers.cache_utils.CacheLayerMixin):  # type: ignore[misc]  # the library is not looked into
    """Keys and values of one layer, for up to `room` tokens, of shape (1, heads, tokens, length).

    `window`: so many tokens are seen from one on backwards, itself included; 0: all. Two to three lengths of a window
    are kept, so that the last tokens can be taken back: `first` is the position of the first that is.
    """

    def __init__(self, room: int, window: int = 0) -> None:
        super().__init__()
        self.window = window
        self.is_sliding = window > 0
        self.first = self.end = 0
        self.kept: tuple[Any, ...] = ()  # buffers: of the keys, of the values
        self._room = room

    def update(self, key_states: Any, value_states: Any, *_args: Any, **_options: Any) -> tuple[Any, Any]:
        """Append the keys and values of some tokens; all that the first of them may look at, and they."""
        count = key_states.shape[2]
        seen = self.seen(self.end)
        if not self.kept or self.end + count - self.first > self.kept[0].shape[2]:
            self._move(max(self.first, seen - self.window), count, (key_states, value_states))
        at, end = self.end - self.first, self.end + count - self.first
        for kept, new in zip(self.kept, (key_states, value_states), strict=True):
            kept[:, :, at:end] = new
        self.end += count
        self.is_initialized = True
        keys, values = (kept[:, :, seen - self.first : end] for kept in self.kept)
        return keys, values

    def seen(self, position: int) -> int:
        """The first token that one at `position` may look at."""
        return max(0, position - self.window + 1) if self.window else 0

    def reaches_back(self, count: int) -> bool:
        """Whether the sequence can go on after its first `count` tokens."""
        return count <= self.end and self.first <= self.seen(count)

    def cut(self, count: int) -> None:
        """Drop what follows the first `count` tokens."""
        self.end = count

    def copy(self, other: "Layer", count: int) -> None:
        """Become the first `count` tokens of `other`, in memory of its own."""
        self.open(count, other.kept)
        start = self.first - other.first
        for mine, its in zip(self.kept, other.kept, strict=True):
            mine[:, :, : count - self.first] = its[:, :, start : start + count - self.first]

    def open(self, count: int, like: Sequence[Any]) -> None:
        """Have room for what is seen after the first `count` tokens, in numbers and shape as `like`; then fill it in.

        `kept` holds from now on whatever the memory held.
        """
        self.first = self.end = self.seen(count)
        self.kept = ()
        self._move(self.first, count - self.first, like)
        self.end = count
        self.is_initialized = True

    def _move(self, first: int, count: int, like: Sequence[Any]) -> None:
        """To new buffers, with room for `count` more tokens, and what there is from position `first` on."""
        needed = self.end - first + count
        room = min(self._room, max(needed, 3 * self.window)) if self.window else self._room
        moved = []
        for number, one in enumerate(like):
            buffer = torch.empty(1, one.shape[1], room, one.shape[3], dtype=one.dtype, device=one.device)
            if self.kept:
                buffer[:, :, : self.end - first] = self.kept[number][:, :, first - self.first : self.end - self.first]
            moved.append(buffer)
        self.kept, self.first = tuple(moved), first

    def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
        """Buffers come with what is to be in them."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many tokens a pass of so many looks at, and the position of the first of them."""
        return self.end + query_length - self.seen(self.end), self.seen(self.end)

    def get_seq_length(self) -> int:
        """How many tokens there were."""
        return self.end

    def get_max_length(self) -> int:
        """As the library has it: of a layer without a window, none."""
        return self.window or -1


class Cells:
    """What one slot holds, of a model of this configuration, for up to `room` tokens.

    Changed by `Model` and `Seating`. A layer of a kind that is not known here is the library's own: then a sequence
    goes on after all of its tokens, or is computed anew. `lasting` false: it is always computed anew.
    """

    def __init__(self, config: Any, room: int, grid: int, *, lasting: bool = True) -> None:
        self.room = room
        self.grid = grid
        self.tokens: list[int] = []
        self.whole = 0
        self._config = config
        self._lasting = lasting
        self._cache: Any = None

    @property
    def cache(self) -> Any:
        """As the library takes it. Memory comes with the first token, and goes with the last."""
        if self._cache is None:
            self._cache = transformers.DynamicCache(config=self._config)
            self._cache.layers = [_own(layer, self.room) for layer in self._cache.layers]
        return self._cache

    @property
    def layers(self) -> list[Layer]:
        """Of the cache; empty where one is not ours."""
        layers = self.cache.layers
        return layers if all(isinstance(layer, Layer) for layer in layers) else []

    def reusable(self, text: Sequence[int], *, exact: bool) -> int:
        """How many of the first tokens of `text` are here; never the last one: its logits are wanted.

        `exact`: only as many as leave every later logit as it would be without them.
        """
        if not self.tokens or not self._lasting:
            return 0
        if exact:
            kept = common(self.tokens[: self.whole], text[:-1]) // self.grid * self.grid
        else:
            kept = common(self.tokens, text[:-1])
        return kept if kept >= REUSED_TOKENS_MIN and self._reaches_back(kept) else 0

    def _reaches_back(self, count: int) -> bool:
        if count == len(self.tokens):
            return True
        return bool(self.layers) and all(layer.reaches_back(count) for layer in self.layers)

    def cut(self, count: int) -> None:
        """Drop all but the first `count` tokens, which `reusable` said. Memory stays while any are left."""
        if count == 0:
            self.clear()
        elif count < len(self.tokens):
            for layer in self.layers:
                layer.cut(count)
            self.settled(self.tokens[:count], self.whole)

    def clear(self) -> None:
        """Hold nothing, and no memory."""
        self.tokens.clear()
        self.whole, self._cache = 0, None

    @property
    def copies(self) -> bool:
        """Whether `copy` can be used: a state that is of one point in a text is seldom the right one."""
        return not self.tokens or bool(self.layers)

    def copy(self, source: "Cells", count: int) -> None:
        """Become the first `count` tokens of `source`, which its `reusable` said; not of layers that are not ours."""
        self.clear()
        with torch.inference_mode():
            for layer, other in zip(self.layers, source.layers, strict=True):
                layer.copy(other, count)
        self.settled(source.tokens[:count], source.whole)

    def settled(self, tokens: Sequence[int], whole: int) -> None:
        """Every layer has become these tokens."""
        self.tokens[:] = tokens
        self.whole = min(whole, len(tokens)) // self.grid * self.grid

    def computed(self, tokens: Sequence[int], *, alone: bool) -> None:
        """A pass appended `tokens`. `alone`: it was of them only."""
        if alone and len(self.tokens) == self.whole and len(tokens) == self.grid:
            self.whole += self.grid
        self.tokens += tokens

    def interrupted(self) -> None:
        """A pass was given up in the middle: some layers have its tokens, some have not."""
        if self.tokens and self.layers:
            for layer in self.layers:
                layer.cut(len(self.tokens))
        else:
            self.clear()


def _own(layer: Any, room: int) -> Any:
    """Ours in the place of the library's, where it is of a kind that is known here."""
    kinds = transformers.cache_utils
    if type(layer) is kinds.DynamicLayer:
        return Layer(room)
    if type(layer) is kinds.DynamicSlidingWindowLayer:
        return Layer(room, layer.sliding_window)
    return layer
