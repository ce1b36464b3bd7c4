"""The plan of a model folder: what each part is made of, and that it is total."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from h2qd.core.offers import offers, parked_bytes, plan_of
from h2qd.core.plan import MemoryPlan, ModelShape
from h2qd.core.records import Model, Terms, Traits
from h2qd.core.torch_plan import torch_plan

MIB = 2**20
MINILM = ModelShape(
    tensor_bytes=90_265_600,
    context_length=256,
    layers=6,
    embedding=384,
    feed_forward=1536,
    vocabulary=30_522,
    heads=(12,),
    kv_heads=(0,),
    key_length=32,
    value_length=32,
    format="safetensors",
    parameters=22_565_888,
)
LLAMA = ModelShape(
    tensor_bytes=136_340_480,
    context_length=4096,
    layers=12,
    embedding=512,
    feed_forward=1408,
    vocabulary=32_000,
    heads=(8,),
    kv_heads=(4,),
    key_length=64,
    value_length=64,
    format="safetensors",
    parameters=68_170_240,
)


def part(plan: MemoryPlan, name: str) -> int:
    return dict(plan.parts)[name]


def test_what_real_workers_grew_by() -> None:
    # PSS after loads by torch 2.13: a sentence model, a llama with its context full, and with that of eight slots.
    for shape, ctx, slots, measured in (
        (MINILM, 256, 1, 428_322_816),
        (LLAMA, 4096, 1, 561_421_312),
        (LLAMA, 8 * 512, 8, 554_119_168),
    ):
        assert torch_plan(shape, ctx, slots).total_bytes == pytest.approx(measured, rel=0.1)


def test_weights_that_stay_as_they_are_stay_pages_of_the_file() -> None:
    for quantize in ("", "bfloat16"):
        plan = torch_plan(replace(LLAMA, quantize=quantize), 4096)
        assert (part(plan, "weights"), part(plan, "repacked")) == (LLAMA.tensor_bytes, 0)


def test_weights_that_are_converted_become_memory() -> None:
    wide = torch_plan(replace(LLAMA, quantize="float32"), 4096)
    assert (part(wide, "weights"), part(wide, "repacked")) == (0, 4 * LLAMA.parameters)
    narrow = torch_plan(replace(MINILM, quantize="bfloat16"), 256)
    assert (part(narrow, "weights"), part(narrow, "repacked")) == (0, 2 * MINILM.parameters)
    embedded = 32_000 * 512
    for quantize, bits in (("int8", 8), ("int4", 5)):
        plan = torch_plan(replace(LLAMA, quantize=quantize), 4096)
        assert part(plan, "weights") == 0
        assert part(plan, "repacked") == 2 * embedded + (LLAMA.parameters - embedded) * bits // 8


def test_the_cache_grows_with_context_and_width_and_only_models_that_generate_have_one() -> None:
    narrow = torch_plan(LLAMA, 1000)
    assert part(narrow, "kv_cache") == 12 * 4 * 128 * 2 * 1000
    assert part(torch_plan(LLAMA, 2000), "kv_cache") == 2 * part(narrow, "kv_cache")
    assert part(torch_plan(replace(LLAMA, quantize="float32"), 1000), "kv_cache") == 2 * part(narrow, "kv_cache")
    assert part(torch_plan(MINILM, 256), "kv_cache") == 0
    assert part(torch_plan(MINILM, 256), "output") == 0


def test_each_further_slot_has_a_row_of_logits() -> None:
    alone, beside = (part(torch_plan(LLAMA, 4096, slots), "output") for slots in (1, 8))
    assert beside - alone == 7 * 8 * LLAMA.vocabulary
    assert part(torch_plan(MINILM, 256, 8), "output") == 0


def test_what_grammars_need_goes_by_the_vocabulary_of_models_that_generate() -> None:
    def overhead(shape: ModelShape) -> int:
        return part(torch_plan(replace(shape, vocabulary=256_000), 256), "overhead") - part(
            torch_plan(replace(shape, vocabulary=0), 256), "overhead"
        )

    assert overhead(LLAMA) - overhead(MINILM) == pytest.approx(32.2 * MIB, rel=0.2)  # by llguidance 1.9, measured


def test_its_cache_is_of_one_kind_so_less_context_is_all_that_can_be_offered() -> None:
    model = Model("m", LLAMA, 4096, Traits(min_ctx=1024))
    assert [(terms.ctx, terms.kv_type) for terms in offers(model, 0, "", 1, exact=False)] == [
        (4096, "f16"),
        (2048, "f16"),
        (1024, "f16"),
    ]


def test_only_mapped_weights_can_be_taken_back_by_the_kernel() -> None:
    for shape in (LLAMA, replace(LLAMA, quantize="int8")):
        model = Model("m", shape, 4096, Traits(), terms=Terms(4096, "f16", 0, 4096, "f16"))
        terms = next(offers(model, 0, "", 1, exact=True))
        parts = dict(plan_of(model, 4096).parts)
        assert terms.file_bytes == parts["weights"]
        assert parked_bytes(model, 1) == parts["repacked"] + parts["overhead"]


@given(
    st.builds(
        ModelShape,
        tensor_bytes=st.integers(-5, 2**53),
        layers=st.integers(-5, 2**53),
        embedding=st.integers(-5, 2**53),
        feed_forward=st.integers(-5, 2**53),
        vocabulary=st.integers(-5, 2**53),
        kv_heads=st.lists(st.integers(-5, 2**53), max_size=3).map(tuple),
        key_length=st.integers(-5, 2**53),
        value_length=st.integers(-5, 2**53),
        format=st.just("safetensors"),
        parameters=st.integers(-5, 2**53),
        quantize=st.sampled_from(["", "float32", "bfloat16", "int8", "int4", "odd"]),
    ),
    st.integers(-5, 2**40),
    st.integers(-5, 2**20),
)
def test_whatever_the_shape_the_plan_is_there_and_adds_up(shape: ModelShape, ctx: int, slots: int) -> None:
    plan = torch_plan(shape, ctx, slots)
    assert all(size >= 0 for _, size in plan.parts)
    assert plan.total_bytes == sum(size for _, size in plan.parts)
