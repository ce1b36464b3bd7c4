"""The heap: memory that was freed goes back to the kernel, not only to the allocator.

A crowd of clients costs libzmq tens of kilobytes each, in two threads; glibc keeps what they leave, in pieces, and
the next crowd finds few that fit (500 connections, again and again: +20 MB, then +31, up to +51; trimmed: +0.5).
And after the first large message glibc would take the next ones from its heaps too, one of which it never trims
(+4 MB for good). Called by the daemon once a second. Where the C library is another one, nothing is done.
"""

import ctypes
from collections.abc import Callable

_WORTH_BYTES = 1024 * 1024
_LOOKS_PER_TRIM = 2

_M_MMAP_THRESHOLD = -3
"""From malloc.h."""

_MAPPED_BYTES = 128 * 1024
"""What is larger is a mapping of its own and goes with its free(); said aloud, or glibc raises it as it sees fit."""


class Heap:
    """Trims while the resident size, which `resident_bytes` reads, stays `_WORTH_BYTES` above its least so far.

    Each `_LOOKS_PER_TRIM`-th look only: what a crowd holds can be given back when it has left, not before.
    """

    def __init__(self, resident_bytes: Callable[[], int]) -> None:
        self._resident_bytes = resident_bytes
        libc = ctypes.CDLL(None)
        self._malloc_trim: Callable[[int], int] | None = getattr(libc, "malloc_trim", None)
        self._least: int | None = None
        self._looks = 0
        if self._malloc_trim is not None:
            libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)

    def look(self) -> None:
        """Trim if it may be worth it: takes well under a millisecond for what a daemon holds."""
        if self._malloc_trim is None:
            return
        self._looks += 1
        size = self._resident_bytes()
        self._least = size if self._least is None else min(self._least, size)
        if size > self._least + _WORTH_BYTES and self._looks % _LOOKS_PER_TRIM == 0:
            self._malloc_trim(0)

    def trim(self) -> None:
        """Give back whatever is free, now."""
        if self._malloc_trim is not None:
            self._malloc_trim(0)
