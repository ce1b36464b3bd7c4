from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from h2qd.core.plan import KV_TYPES, MemoryPlan, ModelShape, batch_tokens, memory_plan
from h2qd.wire.messages import KvType

MIB = 2**20

GEMMA3_270M = ModelShape(
    tensor_bytes=246_587_904,
    context_length=32_768,
    layers=18,
    embedding=640,
    feed_forward=2048,
    vocabulary=262_144,
    heads=(4,) * 18,
    kv_heads=(1,) * 18,
    key_length=256,
    value_length=256,
    sliding_window=512,
    sliding=(True, True, True, True, True, False) * 3,
    repacked_bytes=13_271_040,
)


def part(plan: MemoryPlan, name: str) -> int:
    return dict(plan.parts)[name]


def test_what_llama_cpp_reserved_for_a_real_model() -> None:
    # Buffers from the load log of Gemma 3 270M Q4_K_M, and what zygote and worker grew by (PSS), the context full.
    measured = {
        512: (9.0, 8.35, 331.2),
        4096: (23.25, 8.44, 345.4),
        32_768: (107.25, 12.63, 440.8),
    }
    for ctx, (kv_mib, compute_mib, grown_mib) in measured.items():
        plan = memory_plan(GEMMA3_270M, ctx)
        assert plan.ctx == ctx
        assert part(plan, "weights") == 246_587_904
        assert part(plan, "repacked") == 13_271_040
        assert part(plan, "kv_cache") == kv_mib * MIB
        assert part(plan, "output") == 8 * MIB
        assert abs(part(plan, "compute") - compute_mib * MIB) < 0.05 * compute_mib * MIB
        assert abs(plan.total_bytes / MIB - grown_mib) < 0.01 * grown_mib


def test_the_compute_buffers_of_other_shapes() -> None:
    # Reserved by llama.cpp for made-up models of two layers: (E, FF, heads, kv heads, head length), ctx, MiB.
    measured = [
        ((1024, 4096, 16, 8, 64), 512, 32.51),
        ((1024, 4096, 16, 8, 64), 4096, 36.01),
        ((1024, 8192, 16, 8, 64), 4096, 60.01),
        ((2048, 1024, 16, 8, 128), 512, 22.51),
        ((2048, 1024, 16, 16, 128), 4096, 30.01),
        ((1024, 1024, 16, 8, 256), 512, 26.51),
        ((2048, 8192, 32, 8, 64), 512, 64.51),
        ((896, 4864, 14, 2, 64), 512, 36.01),
    ]
    for (embedding, feed_forward, heads, kv_heads, length), ctx, mib in measured:
        shape = ModelShape(
            layers=2,
            embedding=embedding,
            feed_forward=feed_forward,
            heads=(heads,),
            kv_heads=(kv_heads,),
            key_length=length,
            value_length=length,
        )
        assert abs(part(memory_plan(shape, ctx, batch=512), "compute") / MIB - mib) < 0.02 * mib
    quarter = ModelShape(
        layers=2, embedding=1024, feed_forward=4096, heads=(16,), kv_heads=(8,), key_length=64, value_length=64
    )
    assert abs(part(memory_plan(quarter, 512, batch=128), "compute") / MIB - 8.13) < 0.1


def test_a_sliding_layer_keeps_its_window_and_a_batch() -> None:
    sliding = ModelShape(layers=1, kv_heads=(1,), key_length=8, value_length=8, sliding_window=100, sliding=(True,))
    row = 16 * 2
    assert part(memory_plan(sliding, 100_000, batch=512), "kv_cache") == 768 * row
    assert part(memory_plan(sliding, 100_000, batch=64), "kv_cache") == 256 * row
    assert part(memory_plan(sliding, 256), "kv_cache") == 256 * row


def test_layers_without_a_cache_and_quantized_caches_cost_less() -> None:
    mixed = ModelShape(layers=3, kv_heads=(0, 2, 0), key_length=16, value_length=16, recurrent_bytes=1000)
    assert part(memory_plan(mixed, 1024), "kv_cache") == 1024 * 2 * 32 * 2
    assert part(memory_plan(mixed, 1024, kv_type="q8_0"), "kv_cache") == 1024 * 2 * 34
    assert part(memory_plan(mixed, 1024, kv_type="q4_0"), "kv_cache") == 1024 * 2 * 18
    assert part(memory_plan(mixed, 1024, slots=4), "recurrent") == 4000


def test_an_unknown_kind_of_cache_has_no_plan() -> None:
    with pytest.raises(KeyError):
        memory_plan(GEMMA3_270M, 512, kv_type="q2_k")
    assert set(KV_TYPES) == set(get_args(KvType))


def test_a_recurrent_layer_computes_with_its_own_width() -> None:
    # Reserved by llama.cpp for a made-up mamba of two layers: 26.17 MiB.
    mamba = ModelShape(layers=2, embedding=1024, recurrent_width=2048)
    assert abs(part(memory_plan(mamba, 1024, batch=512), "compute") / MIB - 26.17) < 0.02 * 26.17


def test_a_vocabulary_costs_by_entry_and_by_merge() -> None:
    bare, words, merging = (
        part(memory_plan(shape, 512), "overhead")
        for shape in (ModelShape(), ModelShape(vocabulary=1000), ModelShape(vocabulary=1000, merges=1000))
    )
    assert bare < words < merging
    assert merging - words == 117_000


def test_slots_share_the_context_and_answer_side_by_side() -> None:
    one, four, sixteen = (memory_plan(GEMMA3_270M, 8192, slots) for slots in (1, 4, 16))
    assert part(one, "output") == part(four, "output") == part(sixteen, "output") / 2
    full_layers = 3 * 8192 * 512 * 2
    assert part(one, "kv_cache") == full_layers + 15 * (512 + 256) * 512 * 2
    assert part(four, "kv_cache") == full_layers + 4 * 15 * (512 + 256) * 512 * 2


@settings(max_examples=50)
@given(st.integers(1, 200_000), st.integers(1, 200_000))
def test_a_larger_context_never_takes_less(one: int, other: int) -> None:
    small, large = sorted((one, other))
    assert memory_plan(GEMMA3_270M, small).total_bytes <= memory_plan(GEMMA3_270M, large).total_bytes


odd = st.integers(-(2**64), 2**64)
few = st.integers(-5, 3000)
shapes = st.builds(
    ModelShape,
    tensor_bytes=odd,
    context_length=odd,
    layers=st.one_of(few, odd),
    embedding=odd,
    feed_forward=odd,
    vocabulary=odd,
    heads=st.lists(odd, max_size=5).map(tuple),
    kv_heads=st.lists(odd, max_size=5).map(tuple),
    key_length=odd,
    value_length=odd,
    sliding_window=odd,
    sliding=st.lists(st.booleans(), max_size=5).map(tuple),
    recurrent_bytes=odd,
    recurrent_width=odd,
    merges=odd,
    repacked_bytes=odd,
    adapter_bytes=odd,
)


def test_adapters_are_counted_whole_and_with_what_their_products_take() -> None:
    without, adapted = (memory_plan(replace(GEMMA3_270M, adapter_bytes=size), 1024) for size in (0, MIB))
    assert part(without, "adapters") == 0
    products = part(adapted, "adapters") - MIB
    assert products == adapted.total_bytes - without.total_bytes - MIB
    assert (
        products == batch_tokens(1) * max(GEMMA3_270M.feed_forward, GEMMA3_270M.heads[0] * GEMMA3_270M.key_length) * 4
    )


@settings(max_examples=100, deadline=None)
@given(shapes, odd, few, odd, st.sampled_from(sorted(KV_TYPES)))
def test_no_shape_breaks_the_plan(shape: ModelShape, ctx: int, slots: int, batch: int, kv_type: str) -> None:
    plan = memory_plan(shape, ctx, slots, kv_type, batch)
    assert plan.ctx == ctx
    assert all(size >= 0 for _, size in plan.parts)
    assert plan.total_bytes == sum(size for _, size in plan.parts)
    assert [name for name, _ in plan.parts] == [
        "weights",
        "repacked",
        "kv_cache",
        "recurrent",
        "compute",
        "output",
        "adapters",
        "overhead",
    ]
