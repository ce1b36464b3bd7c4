"""Whatever is done to a model folder: it is read or refused, in little time and memory, and nothing else happens."""

import io
import json
import struct
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from h2qd.safetensors.errors import SafetensorsError
from h2qd.safetensors.facts import facts
from h2qd.safetensors.folder import read_folder
from h2qd.safetensors.header import read_header
from h2qd.wire.messages import ModelFacts
from tests.unit.safetensors.forge import LLAMA, TENSORS, folder, packed, weights

SEED = weights(TENSORS)
HEAD_BYTES = len(SEED) - 1344
PEAK_BYTES_MAX = 4 * 2**20
SECONDS_MAX = 2.0

places = st.integers(0, HEAD_BYTES - 1)
lies = st.one_of(
    st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]).map(lambda n: struct.pack("<Q", n)),
    st.binary(min_size=1, max_size=16),
    st.sampled_from([b"{", b"}", b"[", b'"', b",", b":", b"9", b"-"]),
)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def bounded(attempt: Any) -> bool:
    """Whether it is taken; else why it is refused may be shown."""
    tracemalloc.start()
    started = time.process_time()
    refusal = ""
    try:
        attempt()
    except SafetensorsError as error:
        refusal = str(error)
    spent = time.process_time() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert spent < SECONDS_MAX
    assert peak < PEAK_BYTES_MAX
    if refusal:
        assert refusal.startswith("cannot ")
        assert refusal.isprintable()
        assert len(refusal) < 800
    return not refusal


def taken(raw: bytes) -> bool:
    def attempt() -> None:
        header = read_header(io.BytesIO(raw))
        assert sum(tensor.size_bytes for tensor in header.tensors) < len(raw)

    return bounded(attempt)


def test_the_seed_itself_is_taken() -> None:
    assert taken(SEED)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(places, lies), min_size=1, max_size=4))
def test_overwritten_bytes(changes: list[tuple[int, bytes]]) -> None:
    raw = bytearray(SEED)
    for place, lie in changes:
        raw[place : place + len(lie)] = lie
    taken(bytes(raw))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, len(SEED) - 1))
def test_a_truncated_file_is_never_taken(end: int) -> None:
    assert not taken(SEED[:end])


@settings(deadline=None, max_examples=150)
@given(values)
def test_headers_of_any_json(value: Any) -> None:
    taken(packed({"a": value, "__metadata__": value}, 0))


@settings(deadline=None, max_examples=150)
@given(
    st.dictionaries(
        st.sampled_from([*LLAMA, "head_dim", "auto_map", "quantization_config", "is_encoder_decoder"]),
        values,
        min_size=1,
        max_size=4,
    ),
    st.dictionaries(
        st.sampled_from(["tokenizer_config.json", "modules.json", "sentence_bert_config.json"]), values, max_size=3
    ),
)
def test_configurations_of_any_kind(config: dict[str, Any], others: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as made:
        path = folder(Path(made), {**LLAMA, **config})
        for name, value in others.items():
            (path / name).write_text(json.dumps(value))

        def attempt() -> None:
            found = facts(read_folder(path))
            assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=ModelFacts) == found
            assert found.layers <= len(TENSORS)

        bounded(attempt)


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=400))
def test_noise_for_a_configuration(noise: bytes) -> None:
    with tempfile.TemporaryDirectory() as made:
        path = folder(Path(made))
        (path / "config.json").write_bytes(noise)
        assert not bounded(lambda: facts(read_folder(path)))
