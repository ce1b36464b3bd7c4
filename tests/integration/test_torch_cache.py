"""The layers of a slot's cells: they show a pass what the library's own show it, and can go back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from h2qd.worker.torch.cache import Layer
from h2qd.worker.torch.libraries import torch, transformers

ROOM = 200
WINDOWS = st.sampled_from([0, 1, 2, 7, 16, 150])
PASSES = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def states(start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values that say where they belong, of two heads."""
    positions = torch.arange(start, start + count, dtype=torch.float32)
    heads = torch.stack([positions, -positions])[None, :, :, None]
    return heads.expand(1, 2, count, 3), heads.expand(1, 2, count, 5) + 0.5


def append(layer: Layer, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = layer.update(*states(layer.end, count))
    return keys, values


@given(WINDOWS, PASSES)
def test_a_pass_sees_what_the_librarys_own_layer_shows_it(window: int, passes: list[int]) -> None:
    kinds = transformers.cache_utils
    theirs = kinds.DynamicSlidingWindowLayer(window) if window > 1 else kinds.DynamicLayer()
    ours = Layer(ROOM, window)
    for count in passes:
        if ours.end + count > ROOM:
            return
        if window != 1:  # of such a window, the library's layer keeps all
            assert ours.get_mask_sizes(count) == theirs.get_mask_sizes(count)
            wanted = theirs.update(*states(ours.end, count))
            assert all(torch.equal(one, other) for one, other in zip(append(ours, count), wanted, strict=True))
            assert ours.get_seq_length() == theirs.get_seq_length()
        else:
            keys, values = append(ours, count)
            assert keys.shape[2] == values.shape[2] == count
        assert all(buffer.shape[2] <= ROOM for buffer in ours.kept)


@given(WINDOWS, PASSES, st.data())
def test_after_going_back_it_is_as_if_nothing_had_followed(
    window: int, passes: list[int], data: st.DataObject
) -> None:
    layer = Layer(ROOM, window)
    for count in passes:
        if layer.end + count > ROOM:
            break
        append(layer, count)
    back = data.draw(st.integers(0, layer.end))
    reaches = layer.reaches_back(back)
    assert reaches or window
    assert layer.reaches_back(layer.end)
    assert reaches or back < layer.end - window, "it goes back as far as the window, at least"
    if not reaches or back == ROOM:
        return
    copied = Layer(ROOM, window)
    copied.copy(layer, back)
    layer.cut(back)
    first = layer.seen(back)
    for one in (layer, copied):
        keys, values = append(one, 1)
        wanted = states(first, back + 1 - first)
        assert torch.equal(keys, wanted[0])
        assert torch.equal(values, wanted[1])
