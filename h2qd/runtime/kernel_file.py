"""A small file of the kernel (/proc, /sys) that is read again and again: opened once, then read from its start.

That is faster than opening it each time, and it goes on when the process has run out of file descriptors, which is
when a look at the machine is needed most. Used by `readings` and `thermometer`. Invariants: nothing raises, no read
takes more than `_READ_BYTES_MAX`, at most one descriptor is held.
"""

import contextlib
import errno
import os
from pathlib import Path

_CHUNK_BYTES = 16 * 1024
_READ_BYTES_MAX = 1024 * 1024
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENODEV})


class KernelFile:
    """The file at `path`, which may come and go."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def text(self) -> str | None:
        """What it says now: "" when there is no such file, None when it is there and cannot be read."""
        if self._fd is not None:
            with contextlib.suppress(OSError):  # its group or sensor is gone; another may have its name by now
                return _read(self._fd)
            self.close()
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
            return _read(self._fd)
        except OSError as error:
            self.close()
            return "" if error.errno in _ABSENT else None

    def close(self) -> None:
        """Let go of the descriptor; the next `text` opens the file anew."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _read(fd: int) -> str:
    """All of it: some files of /proc give a page at a time. Raises OSError."""
    whole = bytearray()
    while len(whole) < _READ_BYTES_MAX and (chunk := os.pread(fd, _CHUNK_BYTES, len(whole))):
        whole += chunk
    return whole[:_READ_BYTES_MAX].decode("utf-8", "surrogateescape")
