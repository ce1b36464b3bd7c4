"""A chain that keeps the likeliest tokens chooses the same among few as among all."""

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from h2qd.worker.llama.candidates import Candidates

native = pytest.importorskip("llama_cpp").llama_cpp
SIZE = 20_000
K = 40


def chain(seed: int) -> int:
    made: int = native.llama_sampler_chain_init(native.llama_sampler_chain_default_params())
    for stage in (
        native.llama_sampler_init_top_k(K),
        native.llama_sampler_init_top_p(0.95, 1),
        native.llama_sampler_init_temp(0.8),
        native.llama_sampler_init_dist(seed),
    ):
        native.llama_sampler_chain_add(made, stage)
    return made


def shapes() -> Iterator[NDArray[np.float32]]:
    """Logits of all kinds: narrow, wide, peaked, mostly banned."""
    random = np.random.default_rng(7)
    for _ in range(30):
        yield random.normal(0, 3, SIZE).astype(np.float32)
        yield random.normal(0, 0.01, SIZE).astype(np.float32)
        yield random.normal(-500, 200, SIZE).astype(np.float32)
        peaked = random.normal(0, 1, SIZE).astype(np.float32)
        peaked[random.integers(SIZE)] = 90
        yield peaked
        banned = random.normal(0, 3, SIZE).astype(np.float32)
        banned[random.random(SIZE) < 0.9995] = -np.inf
        yield banned


@pytest.mark.parametrize("likeliest", [K, 3 * K])
def test_few_are_as_good_as_all(likeliest: int) -> None:
    few, whole = Candidates(SIZE, likeliest), Candidates(SIZE, 0)
    chains = chain(5), chain(5)
    sizes = []
    for logits in shapes():
        few.fill(logits, float(logits.max()))
        whole.fill(logits, float(logits.max()))
        sizes.append(few.array.size)
        assert whole.array.size == SIZE
        chosen = []
        for one, among in zip(chains, (few.array, whole.array), strict=True):
            native.llama_sampler_apply(one, ctypes.byref(among))
            chosen.append(among.data[among.selected].id)
        assert chosen[0] == chosen[1]
    assert min(sizes) >= likeliest
    for one in chains:
        native.llama_sampler_free(one)


def test_the_margin_follows_what_the_model_says() -> None:
    random = np.random.default_rng(1)
    candidates = Candidates(SIZE, K)
    sizes = []
    for _ in range(60):
        logits = random.normal(0, 3, SIZE).astype(np.float32)
        candidates.fill(logits, float(logits.max()))
        sizes.append(candidates.array.size)
    assert sorted(sizes)[30] <= SIZE // 10


def test_a_small_vocabulary_is_handed_over_whole() -> None:
    candidates = Candidates(100, K)
    logits = np.arange(100, dtype=np.float32)
    candidates.fill(logits, 99.0)
    assert candidates.array.size == 100
    assert candidates.highest() == 99.0
