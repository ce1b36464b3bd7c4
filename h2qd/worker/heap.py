"""The heap of a worker: freed pages of it go back to the kernel. Called by engines after they freed much."""

import ctypes


def trim_heap() -> None:
    """Hand freed pages of the heap to the kernel; only glibc has this."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
