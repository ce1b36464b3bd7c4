"""Attention in a pass that serves several requests: a row for each, and each row looks at a cache of its own.

What makes a pass long is reading the weights, which its rows share. Their keys and values they do not: so rows may be
of any length, none pays for another's, nothing is padded, and sliding windows stay what they are alone. A pass of one
sequence is left to the library. Registered with it under the names of `name`; `structure` builds models that use it.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from h2qd.worker.torch.libraries import torch, transformers

_Attention: TypeAlias = Callable[..., tuple[Any, Any]]


class _RowsLayer(transformers.cache_utils.CacheLayerMixin):  # type: ignore[misc]  # the library is not looked into
    """One layer of several caches; what it gives are lists, with the keys or the values of each."""

    def __init__(self, layers: Sequence[Any]) -> None:
        super().__init__()
        self._layers = layers
        self.is_sliding = layers[0].is_sliding
        self.is_initialized = True

    def update(self, key_states: Any, value_states: Any, *_args: Any, **_options: Any) -> tuple[list[Any], list[Any]]:
        """Append a token to each cache: of both states, a row each."""
        both = [
            layer.update(key_states[row : row + 1], value_states[row : row + 1])
            for row, layer in enumerate(self._layers)
        ]
        return [keys for keys, _ in both], [values for _, values in both]

    def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
        """Each cache does it for itself."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """A token may look at all that its cache has, so there is nothing to mask."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """There is no one length; positions are given with each pass."""
        return 0

    def get_max_length(self) -> int:
        """No bound of its own."""
        return -1


def join_caches(caches: Sequence[Any]) -> Any:
    """The caches of several requests as one, for a pass of a token for each."""
    return transformers.Cache(layers=[_RowsLayer(layers) for layers in zip(*(c.layers for c in caches), strict=True)])


def name(attention: str) -> str:
    """How a model is told to use this, on top of `attention`: "sdpa", or "eager", the family's own."""
    return f"rows_{attention}"


def _by_rows(attention_of: Callable[[Any], _Attention]) -> _Attention:
    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> tuple[Any, Any]:
        attention = attention_of(module)
        if not isinstance(key, list):
            return attention(module, query, key, value, mask, **options)
        rows = [
            attention(module, query[row : row + 1], keys, values, None, **options)[0]
            for row, (keys, values) in enumerate(zip(key, value, strict=True))
        ]
        return torch.cat(rows), None

    return attend


def _eager(module: Any) -> _Attention:
    """What the module's own family has."""
    attention: _Attention = sys.modules[type(module).__module__].eager_attention_forward
    return attention


def _sdpa(_module: Any) -> _Attention:
    attention: _Attention = transformers.AttentionInterface()["sdpa"]
    return attention


transformers.AttentionInterface.register(name("sdpa"), _by_rows(_sdpa))
transformers.AttentionInterface.register(name("eager"), _by_rows(_eager))
transformers.AttentionMaskInterface.register(name("sdpa"), transformers.masking_utils.sdpa_mask)
transformers.AttentionMaskInterface.register(name("eager"), transformers.masking_utils.eager_mask)
