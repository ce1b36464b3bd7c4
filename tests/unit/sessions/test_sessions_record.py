"""The record of a saved session: what is written is read, and nothing else is."""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from h2qd.sessions.record import Record, RecordError, check, finish, read, record_bytes, split_key

DATA = bytes(range(256)) * 8192
"""More than one chunk of a checksum."""
RECORD = Record("1000-Work.notes", "0f" * 32, "q8_0", "0.3.36", 2, 700, 640, len(DATA))


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def written(descriptor: int, record: Record = RECORD, data: bytes = DATA) -> int:
    os.pwrite(descriptor, data, 0)
    return finish(descriptor, record)


def overwrite(descriptor: int, content: bytes) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, content, 0)


def test_what_is_written_is_read(file: int) -> None:
    size = written(file)
    assert size == len(DATA) + record_bytes(RECORD) == os.fstat(file).st_size
    assert read(file) == check(file) == RECORD
    assert (RECORD.uid, RECORD.name) == (1000, "Work.notes")


def test_a_check_goes_through_all_of_it_and_says_that_it_moves(file: int) -> None:
    ticks: list[None] = []
    written(file)
    check(file, lambda: ticks.append(None))
    assert len(ticks) == 2


@pytest.mark.parametrize("at", [0, len(DATA) - 1, len(DATA) + 3, -17, -9, -1])
def test_one_bit_is_noticed(file: int, at: int) -> None:
    size = written(file)
    place = at % size
    (byte,) = os.pread(file, 1, place)
    os.pwrite(file, bytes([byte ^ 4]), place)
    with pytest.raises(RecordError):
        check(file)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 100, len(DATA), len(DATA) + 60])
def test_a_part_is_none(file: int, length: int) -> None:
    written(file)
    os.ftruncate(file, length)
    with pytest.raises(RecordError):
        read(file)


def test_a_longer_file_is_none(file: int) -> None:
    size = written(file)
    tail = os.pread(file, size, 0)[len(DATA) :]
    overwrite(file, DATA + b"\0" + tail)
    with pytest.raises(RecordError, match="another file"):
        read(file)


@pytest.mark.parametrize(
    "change",
    [
        {"key": "1000"},
        {"key": "../../etc-passwd"},
        {"key": "01-a"},
        {"key": "1-a/b"},
        {"sha256": "0F" * 32},
        {"sha256": ""},
        {"version": 2},
        {"whole": 701},
    ],
)
def test_a_record_that_breaks_the_rules_is_none(file: int, change: dict[str, str | int]) -> None:
    written(file, msgspec.structs.replace(RECORD, **change))
    with pytest.raises(RecordError):
        read(file)


@given(st.binary(max_size=200), st.integers(0, 2**32 - 1))
def test_any_bytes_are_a_record_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, length: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "file"
    for claimed in (length, len(body), 0):
        path.write_bytes(body + claimed.to_bytes(4, "little") + bytes(4) + b"h2q-sess")
        descriptor = os.open(path, os.O_RDONLY)
        try:
            with pytest.raises(RecordError):
                check(descriptor)
        finally:
            os.close(descriptor)


def test_keys_are_of_a_user_and_a_name() -> None:
    assert split_key("0-a") == (0, "a")
    assert split_key("4294967295-a-b") == (4294967295, "a-b")
    for key in ("", "a", "-a", "1-", "1--a", "1-a\n", "1-" + "a" * 65, "-1-a", "\u0661-a"):
        with pytest.raises(RecordError):
            split_key(key)
