"""Whatever is done to a file: it is read or refused, in little time and memory, and nothing else happens."""

import io
import struct
import time
import tracemalloc

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from h2qd.gguf.errors import GgufError
from h2qd.gguf.facts import facts
from h2qd.gguf.header import Header
from h2qd.gguf.reader import read_header
from h2qd.gguf.repack import repacked_bytes
from h2qd.wire.messages import ModelFacts
from tests.unit.gguf import forge
from tests.unit.gguf.forge import Forge, llama, number, numbers, pair, string, strings, tensor

SEED = Forge(
    pairs=[
        *llama(),
        pair("general.name", string("seed")),
        pair("general.file_type", number(forge.U32, 7)),
        pair("general.alignment", number(forge.U32, 32)),
        pair("llama.attention.head_count_kv", numbers(forge.U32, [2, 1])),
        pair("tokenizer.ggml.merges", strings(["a b", "b c"])),
        pair("tokenizer.chat_template", string("{{ messages }}")),
    ],
    tensors=[tensor("token_embd.weight", [64, 40]), tensor("blk.0.ffn_up.weight", [64, 8], 8, 10_240)],
    data_bytes=10_240 + 8 * 68,
).bytes()
HEAD_BYTES = len(SEED) - 10_240 - 8 * 68
PEAK_BYTES_MAX = 4 * 2**20
SECONDS_MAX = 2.0

places = st.integers(0, HEAD_BYTES - 1)
lies = st.one_of(
    st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63, 2**63 - 1, 2**64 - 1]).map(lambda n: struct.pack("<Q", n)),
    st.integers(0, 20).map(lambda n: struct.pack("<I", n)),
    st.binary(min_size=1, max_size=16),
)


def attempt(raw: bytes) -> Header | None:
    """The header when the file is taken. Everything that is taken can go on the wire, and describes what is there."""
    tracemalloc.start()
    started = time.process_time()
    try:
        header, found, refusal = *look(raw), ""
    except GgufError as error:
        refusal = str(error)
    spent = time.process_time() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert spent < SECONDS_MAX
    assert peak < PEAK_BYTES_MAX
    if refusal:
        assert refusal.startswith("cannot ")
        assert refusal.isprintable()
        assert len(refusal) < 600
        return None
    ends = [header.data_offset + t.offset + t.size_bytes for t in header.tensors]
    assert max(ends, default=0) <= len(raw)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=ModelFacts) == found
    return header


def look(raw: bytes) -> tuple[Header, ModelFacts]:
    """All that a worker asks of a file."""
    header = read_header(io.BytesIO(raw))
    assert repacked_bytes(header, "flags : avx2") <= len(raw)
    return header, facts(header)


def test_the_seed_itself_is_taken() -> None:
    assert attempt(SEED) is not None


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(places, lies), min_size=1, max_size=4))
def test_overwritten_bytes(changes: list[tuple[int, bytes]]) -> None:
    raw = bytearray(SEED)
    for place, lie in changes:
        raw[place : place + len(lie)] = lie
    attempt(bytes(raw))


@settings(deadline=None, max_examples=100)
@given(places, places, st.binary(max_size=32))
def test_removed_and_inserted_bytes(start: int, end: int, piece: bytes) -> None:
    attempt(SEED[: min(start, end)] + piece + SEED[max(start, end) :])


@settings(deadline=None, max_examples=50)
@given(st.integers(0, len(SEED) - 1))
def test_a_truncated_file_is_never_taken(end: int) -> None:
    assert attempt(SEED[:end]) is None


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=400))
def test_noise_after_the_magic(noise: bytes) -> None:
    attempt(b"GGUF" + struct.pack("<I", 3) + noise)


@settings(deadline=None, max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "llama.block_count",
                "llama.embedding_length",
                "llama.attention.head_count",
                "llama.attention.head_count_kv",
                "llama.attention.key_length",
                "llama.expert_count",
                "llama.expert_used_count",
                "llama.expert_group_count",
                "llama.rope.scaling.type",
                "general.name",
                "general.file_type",
                "general.type",
                "split.count",
                "tokenizer.ggml.tokens",
            ]
        ),
        st.one_of(
            st.integers(-(2**63), 2**63 - 1).map(lambda n: number(forge.I64, n)),
            st.integers(0, 9).map(lambda n: number(forge.U32, n)),
            st.floats().map(lambda x: number(forge.F64, x)),
            st.booleans().map(lambda flag: number(forge.BOOL, flag)),
            st.text(max_size=20).map(string),
            st.lists(st.integers(-3, 9), max_size=4).map(lambda values: numbers(forge.I32, values)),
            st.lists(st.text(max_size=4), max_size=4).map(strings),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_values_of_any_kind(changed: dict[str, bytes]) -> None:
    kept = [p for p in llama() if not any(p.startswith(forge.text(key)) for key in changed)]
    attempt(Forge(pairs=kept + [pair(key, value) for key, value in changed.items()]).bytes())
