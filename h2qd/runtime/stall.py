"""A call when tasks begin to wait for memory: a trigger of the kernel's on a pressure file (PSI), on asyncio's loop.

It is the kernel that counts the stalls and wakes us (Documentation/accounting/psi.rst); nothing is polled. A process
with CAP_SYS_RESOURCE may have any window from 0.5 s; others multiples of 2 s, and only since Linux 6.5. A trigger
belongs to its open file and needs one of its own. What a stall means is decided by others; called by the daemon.
Invariants: at most one call per window; nothing raises: a kernel that gives no trigger is a `trouble` in words.
"""

import asyncio
import contextlib
import errno
import os
import select
from collections.abc import Callable, Iterable
from pathlib import Path

from h2qd.logs import get_logger

log = get_logger()

_WINDOWS_US = (1_000_000, 2_000_000)
"""Tried in turn. The second is what processes without privileges may have."""

STALL_US = 100_000
"""A tenth or a twentieth of the window: reading swap or file pages back has begun to cost, and all still moves."""


class StallTrigger:
    """Calls `on_stall` when some tasks waited for memory for `stall_us` within a window.

    `paths` are pressure files; the first that takes a trigger is it. `available` says whether there is one, `trouble`
    why not; `path` and `window_us` which.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        paths: Iterable[Path],
        on_stall: Callable[[], None],
        stall_us: int = STALL_US,
    ) -> None:
        self.path: Path | None = None
        self.window_us = 0
        self.trouble = "no pressure file is known"
        self._loop = loop
        self._on_stall = on_stall
        self._fd = -1
        self._epoll: select.epoll | None = None
        for path in paths:
            if self._open(path, stall_us):
                break

    @property
    def available(self) -> bool:
        """Whether the kernel will tell."""
        return self._epoll is not None

    def _open(self, path: Path, stall_us: int) -> bool:
        for window_us in _WINDOWS_US:
            fd = -1
            try:
                fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
                os.write(fd, b"some %d %d\0" % (stall_us, window_us))
                self._watch(fd)
            except OSError as error:
                self.trouble = f"{path}: {_reason(error)}"
                if fd >= 0:
                    os.close(fd)
                continue
            self.path, self.window_us, self.trouble = path, window_us, ""
            return True
        return False

    def _watch(self, fd: int) -> None:
        """Have the loop wait: it does so for what is readable, and this is EPOLLPRI, so an epoll is in between."""
        epoll = select.epoll()
        try:
            epoll.register(fd, select.EPOLLPRI)
            self._loop.add_reader(epoll.fileno(), self._told)
        except BaseException:
            epoll.close()
            raise
        self._fd, self._epoll = fd, epoll

    def _told(self) -> None:
        if self._epoll is None:
            return
        # To look is to take: the loop's own look at the epoll has taken the event, so none may be left to find here.
        found = self._epoll.poll(0)
        if any(events & (select.EPOLLERR | select.EPOLLHUP) for _, events in found):
            log.warning("stall_trigger.ended", path=str(self.path))
            self.trouble = f"{self.path}: its group is gone"
            self.close()
            return
        self._on_stall()

    def close(self) -> None:
        """Call no more. The kernel forgets the trigger with its file."""
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1


def _reason(error: OSError) -> str:
    match error.errno:
        case errno.ENOENT:
            return "the kernel reports no pressure (boot with psi=1)"
        case errno.EOPNOTSUPP:
            return "pressure is switched off (boot with psi=1)"
        case errno.EACCES | errno.EPERM:
            return "this user may set no trigger (Linux before 6.5, or the group belongs to another)"
        case errno.EINVAL:
            return "the kernel does not take the trigger's window"
    return error.strerror or str(error)
