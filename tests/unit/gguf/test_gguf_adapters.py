"""Which files may be added to a model as LoRA adapters, and why others are refused."""

import io
import re

import pytest

from h2qd.gguf.adapters import check_adapter
from h2qd.gguf.errors import GgufError
from h2qd.gguf.header import Header
from h2qd.gguf.reader import read_header
from tests.unit.gguf import forge
from tests.unit.gguf.forge import F32, F64, U32, Forge, number, numbers, pair, string

F16, I8, NVFP4 = 1, 24, 40
SIZES = {0: (1, 4), F16: (1, 2), I8: (1, 1), 28: (1, 8), NVFP4: (64, 36)}
TARGET = "blk.0.attn_q.weight"

Shape = list[int]
Tensors = list[tuple[str, Shape, int]]


def made(pairs: list[bytes], tensors: Tensors) -> Header:
    """The header of a file of these tensors, one after the other."""
    described, offset = [], 0
    for name, shape, kind in tensors:
        elements, size = SIZES[kind]
        count = 1
        for length in shape:
            count *= length
        described.append(forge.tensor(name, shape, kind, offset))
        offset += (count // elements * size + 31) // 32 * 32
    return read_header(io.BytesIO(Forge(pairs, described, offset).bytes()))


MODEL = made(
    forge.llama(),
    [
        ("token_embd.weight", [64, 40], 0),
        (TARGET, [64, 96], F16),
        ("blk.0.attn_norm.weight", [64], 0),
        ("blk.0.ffn_up_exps.weight", [64, 32, 8], 0),
        ("blk.0.ffn_up.weight", [64, 32], NVFP4),
    ],
)
WORDS = {"general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora"}
PAIR: Tensors = [(f"{TARGET}.lora_a", [64, 4], 0), (f"{TARGET}.lora_b", [4, 96], 0)]


def keys(**changed: bytes) -> list[bytes]:
    values = {key: string(word) for key, word in WORDS.items()} | {"adapter.lora.alpha": number(F32, 8)}
    values |= {key.replace("__", "."): value for key, value in changed.items()}
    return [pair(key, value) for key, value in values.items()]


def test_a_pair_that_fits_is_taken() -> None:
    check_adapter(made(keys(), PAIR), MODEL)
    halves: Tensors = [(name, shape, F16) for name, shape, _ in PAIR]
    check_adapter(made(keys(), [*halves, ("blk.0.attn_norm.weight", [64], 0)]), MODEL)


def test_experts_have_halves_of_their_own() -> None:
    name = "blk.0.ffn_up_exps.weight"
    check_adapter(made(keys(), [(f"{name}.lora_a", [64, 4, 8], 0), (f"{name}.lora_b", [4, 32, 8], 0)]), MODEL)
    with pytest.raises(GgufError, match="do not fit 64x32x8"):
        check_adapter(made(keys(), [(f"{name}.lora_a", [64, 4, 8], 0), (f"{name}.lora_b", [4, 32, 7], 0)]), MODEL)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"general__type": string("model")}, "its general.type is model, not adapter"),
        ({"general__type": number(U32, 1)}, "its general.type is 1, not adapter"),
        ({"general__architecture": string("qwen2")}, "its general.architecture is qwen2, not llama"),
        ({"adapter__type": string("ia3")}, "its adapter.type is ia3, not lora"),
        ({"adapter__lora__alpha": number(F64, 8)}, "adapter.lora.alpha: it must be a float32, not of type 12"),
        ({"adapter__lora__alpha": string("8")}, "adapter.lora.alpha: it must be a float32, not of type 8"),
        ({"adapter__lora__alpha": number(F32, float("nan"))}, "it must be a finite number"),
        ({"adapter__alora__invocation_tokens": numbers(U32, [1, 2])}, "begins to work at certain tokens"),
    ],
)
def test_other_files_are_no_adapters(changed: dict[str, bytes], why: str) -> None:
    with pytest.raises(GgufError, match=re.escape(why)):
        check_adapter(made(keys(**changed), PAIR), MODEL)


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ([], "it changes nothing"),
        (PAIR[:1], "half of the pair"),
        (PAIR[1:], "half of the pair"),
        ([(f"{TARGET}.lora_a", [32, 4], 0), PAIR[1]], "do not fit 64x96"),
        ([(f"{TARGET}.lora_a", [64, 5], 0), PAIR[1]], "do not fit 64x96"),
        ([(f"{TARGET}.lora_a", [64, 4, 2], 0), PAIR[1]], "do not fit 64x96"),
        ([PAIR[0], (f"{TARGET}.lora_b", [4, 95], 0)], "do not fit 64x96"),
        ([(f"{TARGET}.lora_a", [64, 4], I8), PAIR[1]], "I8 is none of"),
        ([(f"{TARGET}.lora_a", [64, 4], 28), PAIR[1]], "F64 is none of"),
        ([("blk.9.attn_q.weight.lora_a", [64, 4], 0)], "the model has no tensor blk.9.attn_q.weight"),
        ([("token_embd.weight.lora_a", [4, 40], 0)], "it changes token_embd.weight"),
        ([("blk.0.attn_norm.weight.lora_a", [64, 4], 0)], "nothing that it could change"),
        ([("blk.0.ffn_up.weight.lora_a", [64, 4], 0)], "nothing that it could change"),
        ([(TARGET, [64, 96], 0)], "it is no half of a LoRA pair"),
        ([(f"{TARGET}.lora_a.lora_a", [64, 96], 0)], "it is no half of a LoRA pair"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tensors: Tensors, why: str) -> None:
    with pytest.raises(GgufError, match=re.escape(why)):
        check_adapter(made(keys(), tensors), MODEL)
