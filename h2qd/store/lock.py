"""One daemon per state folder: a lock file that the kernel lets go of however its holder dies."""

import fcntl
import os
from pathlib import Path


class LockedError(Exception):
    """Another daemon owns the state folder."""


class StateLock:
    """Holds `FOLDER/lock` until `release` or the end of the process; the file names the holder's pid."""

    def __init__(self, folder: Path) -> None:
        """Make the folder if need be and take the lock. Raises `LockedError`, naming the holder; OSError."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        self._descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._descriptor)
            raise LockedError(f"cannot use the state folder {folder}: the daemon with pid {holder} owns it") from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let the next daemon in."""
        os.close(self._descriptor)
