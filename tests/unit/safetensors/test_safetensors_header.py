"""One file with weights: what its header must say, and what it must not."""

import io
import struct
from typing import Any

import pytest

from h2qd.safetensors import header as reader
from h2qd.safetensors.errors import SafetensorsError
from h2qd.safetensors.header import read_header
from tests.unit.safetensors.forge import TENSORS, described, packed, weights

EMBEDDING = "model.embed_tokens.weight"


def refusal(raw: bytes) -> str:
    with pytest.raises(SafetensorsError) as caught:
        read_header(io.BytesIO(raw))
    return str(caught.value)


def changed(**fields: Any) -> bytes:
    """A file whose first tensor is described otherwise."""
    header = described(TENSORS)
    header[EMBEDDING] = {**header[EMBEDDING], **fields}
    return packed(header, 10 * 8 * 4 + 2 * 16 * 8 * 4)


def test_tensors_are_told_in_the_order_of_their_data() -> None:
    found = read_header(io.BytesIO(weights(TENSORS)))
    assert [tensor.name for tensor in found.tensors] == list(TENSORS)
    assert found.tensors[0].shape == (10, 8)
    assert (found.tensors[0].elements, found.tensors[0].size_bytes) == (80, 320)
    assert found.file_bytes == len(weights(TENSORS))


def test_scalars_and_empty_tensors_are_tensors() -> None:
    found = read_header(io.BytesIO(weights({"a": ("F32", []), "b": ("BF16", [0, 7]), "c": ("I64", [1])})))
    assert [tensor.elements for tensor in found.tensors] == [1, 0, 1]


def test_data_may_lie_in_another_order_than_the_header_has() -> None:
    header = described({"b": ("F32", [2]), "a": ("F32", [1])})
    found = read_header(io.BytesIO(packed(dict(reversed(header.items())), 12)))
    assert [tensor.name for tensor in found.tensors] == ["b", "a"]


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "header's length"),
        (b"\x08\x00\x00", "header's length"),
        (struct.pack("<Q", 2**63), "at most"),
        (struct.pack("<Q", reader.HEADER_BYTES_MAX + 1), "at most"),
        (struct.pack("<Q", 100) + b"{}", "the file has 10"),
        (packed(b"", 0), "cannot read the header"),
        (packed(b"[]", 0), "cannot read the header"),
        (packed(b'{"a": 1}', 0), "cannot read the header"),
        (packed(b'{"a": {"dtype": "F32"', 0), "cannot read the header"),
        (packed(b'{"a\xff": {}}', 0), "cannot read the header"),
        (packed(b'{"a": ' + b'{"b": ' * 5000 + b"1" + b"}" * 5000 + b"}", 0), "cannot read the header"),
        (packed(b"{" * (reader.TENSORS_MAX + 3), 0), "tensors"),
        (packed({"": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, 1), "0 characters"),
        (packed({"n" * 513: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, 1), "513 characters"),
        (packed({"a": {"dtype": "U8", "shape": [1]}}, 1), "no data"),
        (packed({"a": {"dtype": "U8", "shape": [1] * 9, "data_offsets": [0, 1]}}, 1), "cannot read the header"),
        (changed(dtype="F4"), "type F4 is unknown"),
        (changed(dtype="\x1b[2J"), "is unknown"),
        (changed(shape=[10, 9]), "its shape takes 360"),
        (changed(shape=[2**44] * 8), "its shape takes"),
        (changed(shape=[-10, -8]), "cannot read the header"),
        (changed(shape=[10.5, 8]), "cannot read the header"),
        (changed(data_offsets=[320, 0]), "its data have -320 bytes"),
        (changed(data_offsets=[0, 2**63]), "cannot read the header"),
        (changed(data_offsets=[4, 324]), "begin at byte"),
        (changed(shape=[9, 8], data_offsets=[0, 288]), "begin at byte 320, those before end at 288"),
        (weights(TENSORS)[:-1], "its tensors take 1344 bytes, it has 1343"),
        (weights(TENSORS) + b"x", "its tensors take 1344 bytes, it has 1345"),
    ],
)
def test_what_is_refused(raw: bytes, why: str) -> None:
    told = refusal(raw)
    assert told.startswith("cannot ")
    assert why in told
    assert told.isprintable()


def test_two_tensors_may_not_share_data() -> None:
    same = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
    assert "begin at byte 0" in refusal(packed({"a": same, "b": same}, 4))
