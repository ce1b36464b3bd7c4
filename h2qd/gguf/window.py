"""A bounded window onto the head of a file: small pieces in order, whatever their lengths claim.

It reads chunks through ordinary reads and never maps the file: a file that is cut short under a mapping kills the
process, under a read it is a short read. It knows nothing of GGUF but how its strings are framed. Caller: `reader`.
Invariant: holds one chunk at a time, and never goes past the end of the file or past the limit.
"""

import os
import struct
from typing import BinaryIO

from h2qd.gguf.errors import GgufError

_CHUNK_BYTES = 256 * 1024
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class Window:
    """Reads `file` from its beginning, at most `limit` bytes of it.

    `subject` is what is being read now, for messages; the reader keeps it up to date. All methods raise `GgufError`
    where the file or the limit ends early.
    """

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self.file_bytes = file.seek(0, os.SEEK_END)
        self.subject = "the header"
        self._file = file
        self._limit = limit
        self._chunk = b""
        self._chunk_start = 0
        self._at = 0

    @property
    def position(self) -> int:
        """Bytes read or skipped so far."""
        return self._chunk_start + self._at

    @property
    def left(self) -> int:
        """Bytes that the file still has."""
        return self.file_bytes - self.position

    def take(self, count: int) -> bytes:
        """The next `count` bytes; callers bound `count` to what they can afford to hold."""
        self._need(count)
        piece = self._chunk[self._at : self._at + count]
        self._at += count
        return piece

    def u32(self) -> int:
        """An unsigned number of 4 bytes, little-endian."""
        self._need(_U32.size)
        (value,) = _U32.unpack_from(self._chunk, self._at)
        self._at += _U32.size
        return int(value)

    def u64(self) -> int:
        """An unsigned number of 8 bytes, little-endian."""
        self._need(_U64.size)
        (value,) = _U64.unpack_from(self._chunk, self._at)
        self._at += _U64.size
        return int(value)

    def skip(self, count: int) -> None:
        """Go `count` bytes on without reading them."""
        self._check(self.position + count)
        self._at += count

    def skip_strings(self, count: int) -> None:
        """Go past `count` strings, each a length of 8 bytes and that many bytes.

        A vocabulary has hundreds of thousands: the inner loop does nothing but hop from length to length within
        the chunk, and looks up only where it leaves it.
        """
        unpack = _U64.unpack_from
        while count:
            self._need(_U64.size)
            chunk, at = self._chunk, self._at
            last = len(chunk) - _U64.size
            hops = 0
            while at <= last and hops < count:
                at += 8 + unpack(chunk, at)[0]
                hops += 1
            count -= hops
            self._check(self._chunk_start + at)
            self._at = at

    def _need(self, count: int) -> None:
        """Have `count` bytes from here on in the chunk."""
        if self._at + count <= len(self._chunk):
            return
        start = self.position
        self._check(start + count)
        self._file.seek(start)
        wanted = max(count, _CHUNK_BYTES)
        pieces: list[bytes] = []
        while wanted > 0 and (piece := self._file.read(wanted)):
            pieces.append(piece)
            wanted -= len(piece)
        self._chunk, self._chunk_start, self._at = b"".join(pieces), start, 0
        if count > len(self._chunk):
            raise GgufError(
                f"cannot read {self.subject}: the file was cut to {start + len(self._chunk)} bytes meanwhile"
            )

    def _check(self, end: int) -> None:
        if end > self.file_bytes:
            raise GgufError(f"cannot read {self.subject}: it ends at byte {end}, the file at byte {self.file_bytes}")
        if end > self._limit:
            raise GgufError(f"cannot read {self.subject}: headers larger than {self._limit} bytes are not taken")
