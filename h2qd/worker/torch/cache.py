"""The KV cache of one request: room for all it may need, of which only what is written to becomes memory.

The library's own cache makes a copy of itself for each token, which costs most of a step in a long context. Sliding
windows are left to the library: theirs are short. Called by `model`.
"""

from typing import Any

from h2qd.worker.torch.libraries import torch, transformers


class _Layer(transformers.cache_utils.DynamicLayer):  # type: ignore[misc]  # the library is not looked into
    """Keys and values of one layer, for up to `room` tokens."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._whole: tuple[Any, Any] | None = None

    def update(self, key_states: Any, value_states: Any, *_args: Any, **_options: Any) -> tuple[Any, Any]:
        """Append the keys and values of some tokens, of shape (1, heads, tokens, length); all there are."""
        if self._whole is None:
            self.lazy_initialization(key_states, value_states)
            self._whole = (self._empty(key_states), self._empty(value_states))
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        for whole, new in zip(self._whole, (key_states, value_states), strict=True):
            whole[:, :, start:end] = new
        self.keys, self.values = (whole[:, :, :end] for whole in self._whole)
        return self.keys, self.values

    def _empty(self, like: Any) -> Any:
        one, heads, _, length = like.shape
        return torch.empty(one, heads, self._room, length, dtype=like.dtype, device=like.device)


def open_cache(config: Any, room: int) -> Any:
    """An empty cache for one sequence of up to `room` tokens."""
    cache = transformers.DynamicCache(config=config)
    plain = transformers.cache_utils.DynamicLayer
    cache.layers = [_Layer(room) if type(layer) is plain else layer for layer in cache.layers]
    return cache
