"""The record at the end of a saved session's file: whose it is, of which model, and whether the file is whole.

A file is the engine's data, then a record in msgpack, then a foot of fixed size: the record's length, the CRC-32 of
everything before the foot, a magic word. Called by `folder` and by whoever restores. Invariant: whatever the bytes,
reading gives a record that fits its file or a `RecordError`, and takes no more memory than `RECORD_BYTES_MAX` and a
chunk. A CRC tells damage, not malice: the folder is for its owner only.
"""

import errno
import os
import re
import struct
import zlib
from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta

RECORD_BYTES_MAX = 1024
VERSION = 1

_FOOT = struct.Struct("<II8s")
_MAGIC = b"h2q-sess"
_CHUNK_BYTES = 1024 * 1024
_KEY = re.compile(r"(0|[1-9][0-9]{0,9})-([A-Za-z0-9][A-Za-z0-9._-]{0,63})")
_SHA256 = re.compile(r"[0-9a-f]{64}")

_Count = Annotated[int, Meta(ge=0, le=2**53)]


class RecordError(Exception):
    """These bytes are no saved session, or not all of one."""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file holds: the cells of `tokens` tokens, the first `whole` of them computed in whole pieces.

    `key` is UID-NAME. `streams`: how many sequences the context had that wrote them.
    `adapters`: a mark of those that computed them, empty for none.
    """

    key: Annotated[str, Meta(max_length=80)]
    sha256: Annotated[str, Meta(max_length=64)]
    kv_type: Annotated[str, Meta(max_length=16)]
    engine: Annotated[str, Meta(max_length=64)]
    streams: _Count
    tokens: _Count
    whole: _Count
    data_bytes: _Count
    adapters: Annotated[str, Meta(max_length=64)] = ""
    version: int = VERSION

    @property
    def uid(self) -> int:
        """Whose session it is."""
        return split_key(self.key)[0]

    @property
    def name(self) -> str:
        """What its owner calls it."""
        return split_key(self.key)[1]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


def split_key(key: str) -> tuple[int, str]:
    """The user id and the name of UID-NAME. Raises `RecordError`."""
    match = _KEY.fullmatch(key)
    if match is None:
        raise RecordError("no key of a session")
    return int(match[1]), match[2]


def check_sha256(sha256: str) -> None:
    """Raises `RecordError` unless it is one, in lower case."""
    if _SHA256.fullmatch(sha256) is None:
        raise RecordError("no SHA-256")


def record_bytes(record: Record) -> int:
    """So many bytes does a file have beside its data."""
    return len(_encode(record)) + _FOOT.size


def finish(descriptor: int, record: Record) -> int:
    """Append `record` to the data in this file, which is `record.data_bytes` long; the size of the whole. OSError."""
    body = _encode(record)
    checksum = zlib.crc32(body, _checksum(descriptor, record.data_bytes))
    os.pwrite(descriptor, body + _FOOT.pack(len(body), checksum, _MAGIC), record.data_bytes)
    size = record.data_bytes + len(body) + _FOOT.size
    if os.fstat(descriptor).st_size != size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # a full disk may take a part
    return size


def read(descriptor: int) -> Record:
    """The record of an open file, which fits its size; data is not looked at. Raises `RecordError`, OSError."""
    return _tail(descriptor)[0]


def check(descriptor: int, tick: Callable[[], None] = lambda: None) -> Record:
    """The record of an open file, all of whose bytes are as they were written. Raises `RecordError`, OSError.

    Reads all of it; `tick` is called for each chunk.
    """
    record, body, checksum = _tail(descriptor)
    if zlib.crc32(body, _checksum(descriptor, record.data_bytes, tick)) != checksum:
        raise RecordError("damaged")
    return record


def _tail(descriptor: int) -> tuple[Record, bytes, int]:
    size = os.fstat(descriptor).st_size
    if size < _FOOT.size:
        raise RecordError("too short")
    foot = os.pread(descriptor, _FOOT.size, size - _FOOT.size)
    if len(foot) != _FOOT.size:
        raise RecordError("shrinking")
    length, checksum, magic = _FOOT.unpack(foot)
    if magic != _MAGIC:
        raise RecordError("no saved session")
    if length > min(RECORD_BYTES_MAX, size - _FOOT.size):
        raise RecordError("a record that is too long")
    body = os.pread(descriptor, length, size - _FOOT.size - length)
    try:
        record = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise RecordError("no record") from None
    if record.version != VERSION:
        raise RecordError("another version")
    split_key(record.key)
    check_sha256(record.sha256)
    if record.data_bytes + length + _FOOT.size != size or record.whole > record.tokens:
        raise RecordError("a record of another file")
    return record, body, checksum


def _checksum(descriptor: int, size: int, tick: Callable[[], None] = lambda: None) -> int:
    checksum = 0
    chunk = bytearray(min(_CHUNK_BYTES, size))
    for start in range(0, size, _CHUNK_BYTES):
        view = memoryview(chunk)[: min(_CHUNK_BYTES, size - start)]
        if os.preadv(descriptor, [view], start) != len(view):
            raise RecordError("shorter than it says")
        checksum = zlib.crc32(view, checksum)
        tick()
    return checksum
