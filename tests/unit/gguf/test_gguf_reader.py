import io
import os
import struct
import time
import tracemalloc
from pathlib import Path

import pytest

from h2qd.gguf.errors import GgufError
from h2qd.gguf.header import Skipped
from h2qd.gguf.reader import HEADER_BYTES_MAX, identity, read_header
from tests.unit.gguf import forge
from tests.unit.gguf.forge import Forge, number, numbers, pair, string, strings, tensor, text, u32, u64

HUGE = 2**63
F32_TABLE = tensor("t", [64, 40])


def test_a_sound_file_is_read_whole() -> None:
    header = read_header(
        Forge(
            pairs=[
                pair("a.text", string("hello")),
                pair("a.flag", number(forge.BOOL, 1)),
                pair("a.negative", number(forge.I64, -5)),
                pair("a.real", number(forge.F64, 0.25)),
                pair("a.list", numbers(forge.U32, [1, 2, 3])),
                pair("a.flags", numbers(forge.BOOL, [1, 0])),
                pair("a.empty", numbers(forge.U32, [])),
                pair("a.words", strings(["x", "", "yz"])),
                pair("a.long", string("x" * 5000)),
                pair("a.many", numbers(forge.U16, list(range(2000)))),
                pair("a.last", number(forge.U8, 7)),
            ],
            tensors=[tensor("one", [32, 3], 8, 0), tensor("two", [5], 0, 128)],
            data_bytes=128 + 20,
        ).file()
    )
    assert header.values == {
        "a.text": "hello",
        "a.flag": True,
        "a.negative": -5,
        "a.real": 0.25,
        "a.list": (1, 2, 3),
        "a.flags": (True, False),
        "a.empty": (),
        "a.words": Skipped("string", 3),
        "a.long": Skipped("text", 5000),
        "a.many": Skipped("uint16", 2000),
        "a.last": 7,
    }
    one, two = header.tensors
    assert (one.name, one.shape, one.type.name, one.offset, one.elements, one.size_bytes) == (
        ("one", (32, 3), "Q8_0", 0, 96, 102)
    )
    assert (two.shape, two.offset, two.size_bytes) == ((5,), 128, 20)
    assert header.data_offset % 32 == 0
    assert header.file_bytes == header.data_offset + 148
    assert (header.version, header.alignment) == (3, 32)


def test_version_2_and_another_alignment_are_read() -> None:
    header = read_header(
        Forge(
            version=u32(2),
            pairs=[pair("general.alignment", number(forge.U32, 64))],
            tensors=[tensor("a", [1]), tensor("b", [1], 0, 64)],
            data_bytes=256,
        ).file()
    )
    assert (header.version, header.alignment, header.data_offset % 64) == (2, 64, 0)


HOSTILE: dict[str, tuple[Forge | io.BytesIO, str]] = {
    "empty": (io.BytesIO(), "cannot read the magic: it ends at byte 4, the file at byte 0"),
    "other magic": (Forge(magic=b"GGML"), "cannot take a file that begins with 47474d4c"),
    "version 1": (Forge(version=u32(1)), "cannot take GGUF version 1"),
    "version 4": (Forge(version=u32(4)), "cannot take GGUF version 4"),
    "version 0": (Forge(version=u32(0)), "cannot take GGUF version 0"),
    "big-endian": (Forge(version=struct.pack(">I", 3)), "cannot take a big-endian file"),
    "2^63 tensors": (Forge(tensor_count=HUGE), "cannot take 9223372036854775808 tensors"),
    "2^63 keys": (Forge(pair_count=HUGE), "cannot take 9223372036854775808 metadata keys"),
    "more keys than there are": (Forge(pair_count=9), "cannot read"),
    "more tensors than there are": (Forge(tensor_count=2, data_bytes=0), "cannot read"),
    "no name": (Forge(pairs=[pair("", number(forge.U8, 1))]), "its name is 0 bytes long"),
    "long key": (Forge(pairs=[pair("k" * 1025, number(forge.U8, 1))]), "its name is 1025 bytes long"),
    "key of 2^63": (Forge(pairs=[u64(HUGE)]), "its name is 9223372036854775808 bytes long"),
    "key not UTF-8": (Forge(pairs=[pair(b"\xff", number(forge.U8, 1))]), "its name is not UTF-8"),
    "zero in key": (Forge(pairs=[pair("a\0b", number(forge.U8, 1))]), "its name a\\x00b holds a zero byte"),
    "key twice": (Forge(pairs=[pair("k", number(forge.U8, 1))] * 2), "cannot take key k twice"),
    "value type 13": (Forge(pairs=[pair("k", u32(13))]), "cannot read key k: there is no value type 13"),
    "array type 13": (Forge(pairs=[pair("k", u32(9) + u32(13) + u64(1))]), "there is no value type 13"),
    "array of arrays": (Forge(pairs=[pair("k", u32(9) + u32(9) + u64(1))]), "it is an array of arrays"),
    "2^63 numbers": (
        Forge(pairs=[pair("k", u32(9) + u32(4) + u64(HUGE))]),
        "cannot read the value of k: it ends at byte",
    ),
    "2^63 strings": (
        Forge(pairs=[pair("k", u32(9) + u32(8) + u64(HUGE))]),
        "9223372036854775808 strings are more than the file can hold",
    ),
    "string of 2^63": (Forge(pairs=[pair("k", u32(8) + u64(HUGE))]), "cannot read the value of k: it ends at byte"),
    "string of 2^64-1 in an array": (
        Forge(pairs=[pair("k", u32(9) + u32(8) + u64(2) + text("a") + u64(2**64 - 1))]),
        "cannot read the value of k: it ends at byte",
    ),
    "escapes in a key": (Forge(pairs=[pair("\x1b[2J", u32(99))]), "cannot read key \\x1b[2J"),
    "too much kept": (
        Forge(pairs=[pair(f"k{n}", numbers(forge.U64, [0] * 1024)) for n in range(129)]),
        "cannot keep the metadata",
    ),
    "alignment 24": (Forge(pairs=[pair("general.alignment", number(forge.U32, 24))]), "general.alignment = 24"),
    "alignment 0": (Forge(pairs=[pair("general.alignment", number(forge.U32, 0))]), "general.alignment = 0"),
    "alignment 2^31": (
        Forge(pairs=[pair("general.alignment", number(forge.U32, 2**31))]),
        "general.alignment = 2147483648",
    ),
    "alignment of 8 bytes": (
        Forge(pairs=[pair("general.alignment", number(forge.U64, 32))]),
        "cannot use general.alignment: it must be a uint32",
    ),
    "tensor twice": (Forge(tensors=[F32_TABLE, tensor("t", [1], 0, 10240)]), "cannot take tensor t twice"),
    "long tensor name": (Forge(tensors=[tensor("t" * 64, [1])]), "its name is 64 bytes long"),
    "zero in tensor name": (Forge(tensors=[tensor("t\0", [1])]), "holds a zero byte"),
    "5 dimensions": (Forge(tensors=[tensor("t", [1] * 5)]), "5 dimensions are more than 4"),
    "2^32-1 dimensions": (Forge(tensors=[text("t") + u32(2**32 - 1)]), "4294967295 dimensions are more than 4"),
    "empty tensor": (Forge(tensors=[tensor("t", [64, 0])]), "its shape 64x0 is empty"),
    "shape overflows": (Forge(tensors=[tensor("t", [2**32, 2**31])]), "its shape 4294967296x2147483648 overflows"),
    "length overflows": (Forge(tensors=[tensor("t", [HUGE])]), "its shape 9223372036854775808 overflows"),
    "unknown tensor type": (Forge(tensors=[tensor("t", [64], 43)]), "there is no tensor type 43"),
    "retired tensor type": (Forge(tensors=[tensor("t", [64], 31)]), "there is no tensor type 31"),
    "half a block": (Forge(tensors=[tensor("t", [33, 2], 8)]), "rows of 33 are no multiple of Q8_0's 32"),
    "offset past the end": (Forge(tensors=[tensor("t", [64], 0, 2**62)]), "leaves a gap after 0"),
    "misaligned": (Forge(tensors=[tensor("t", [64], 0, 7)]), "its offset 7 is not a multiple of 32"),
    "overlapping": (
        Forge(tensors=[F32_TABLE, tensor("u", [64], 0, 32)]),
        "cannot use tensor u: its offset 32 overlaps the one before, ending at 10240",
    ),
    "gap": (Forge(tensors=[F32_TABLE, tensor("u", [64], 0, 20480)]), "its offset 20480 leaves a gap after 10240"),
    "data cut": (Forge(data_bytes=10239), "cannot use tensor token_embd.weight: it ends at byte"),
    "no data": (Forge(data_bytes=0), "cannot use tensor token_embd.weight: it ends at byte"),
    "larger than the file": (Forge(tensors=[tensor("t", [2**40])]), "cannot use tensor t: it ends at byte"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused_by_name(name: str) -> None:
    source, message = HOSTILE[name]
    with pytest.raises(GgufError) as caught:
        read_header(source.file() if isinstance(source, Forge) else source)
    assert str(caught.value).startswith("cannot ")
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_every_truncation_is_refused() -> None:
    whole = Forge().bytes()
    for end in range(len(whole)):
        with pytest.raises(GgufError):
            read_header(io.BytesIO(whole[:end]))


def sparse_file(path: Path, head: bytes, size: int) -> Path:
    """`head`, then zeros that take no disk."""
    path.write_bytes(head)
    os.truncate(path, size)
    return path


def test_a_header_over_the_limit_is_refused(tmp_path: Path) -> None:
    head = b"GGUF" + u32(3) + u64(0) + u64(1) + pair("k", u32(9) + u32(0) + u64(HEADER_BYTES_MAX))
    with pytest.raises(GgufError, match="headers larger than 134217728 bytes are not taken"):
        read_header(sparse_file(tmp_path / "big", head, HEADER_BYTES_MAX * 2))


def test_a_file_larger_than_any_model_is_refused() -> None:
    class Vast(io.BytesIO):
        def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
            return 2**44 + 1 if whence == os.SEEK_END else super().seek(offset, whence)

    with pytest.raises(GgufError, match="cannot take a file of 17592186044417 bytes"):
        read_header(Vast())


def test_the_dearest_header_costs_little_memory_and_bounded_time(tmp_path: Path) -> None:
    # As many empty strings as a header can hold: the shortest hops, the most of them.
    count = (HEADER_BYTES_MAX - 4096) // 8
    head = b"GGUF" + u32(3) + u64(0) + u64(1) + pair("k", u32(9) + u32(8) + u64(count))
    path = sparse_file(tmp_path / "strings", head, HEADER_BYTES_MAX)
    started = time.process_time()
    assert read_header(path).values == {"k": Skipped("string", count)}
    assert time.process_time() - started < 20
    # What is kept is bounded, too: small numbers, which take more in memory than in the file.
    many = Forge(pairs=[pair(f"key{n}", numbers(forge.U8, [n % 256] * 225)) for n in range(4000)]).bytes()
    tracemalloc.start()
    read_header(io.BytesIO(many))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 24 * 2**20


def test_a_file_cut_while_it_is_read_is_refused() -> None:
    class Shrinking(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(size)[:10]

        def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
            end = super().seek(offset, whence)
            if whence == os.SEEK_END:
                self.truncate(30)
            return end

    with pytest.raises(GgufError, match="the file was cut to 30 bytes meanwhile"):
        read_header(Shrinking(Forge().bytes()))


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/null"):
        with pytest.raises(GgufError, match="it is not a regular file"):
            read_header(path)
    with pytest.raises(GgufError, match=r"cannot open a\\x00b"):
        read_header("a\0b")
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "absent")


def test_the_identity_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"a")
    first = identity(path.stat())
    assert first == identity(path.stat())
    assert len(first) == 4
    os.utime(path, ns=(1, 1))
    assert identity(path.stat()) != first
    other = tmp_path / "other"
    other.write_bytes(b"a")
    os.utime(other, ns=(1, 1))
    assert identity(other.stat()) != identity(path.stat())
