"""What Linux is told about a process of ours: when it dies, what it is called, what it may keep and cost.

Called by the zygote for itself and, between fork and work, for each worker. It starts and ends no
process. Invariant: after `die_with_parent` this process cannot outlive its parent, whatever it is doing.
"""

import ctypes
import os
import resource
import signal
from pathlib import Path

from h2qd.worker import journal

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15  # both from linux/prctl.h

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """Have the kernel SIGKILL this process when its parent dies. Does not return if `parent` is gone already.

    The kernel watches the parent's *thread* that forked (prctl(2)): fork from a thread that lives as long
    as the process. The signal does not pass on to children; each sets its own.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL)) != 0:
        raise OSError(ctypes.get_errno(), "cannot set the parent death signal")
    if os.getppid() != parent:  # it died between fork and prctl, and no signal will come
        os._exit(os.EX_UNAVAILABLE)


def name_process(name: str) -> None:
    """The name that ps and top show; the kernel keeps 15 bytes."""
    _libc.prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()))


def leave_terminal() -> None:
    """Lead a session, out of reach of a terminal's Ctrl-C and hang-up; a group of one's own will do."""
    if os.getpgrp() != os.getpid():  # the leader of a group may not call setsid
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def lead_group(pid: int = 0) -> None:
    """Make `pid` (0: this process) lead a process group, so that one signal reaches all it ever starts.

    Parent and child both call it: whoever is first, the group exists when either goes on.
    """
    try:
        os.setpgid(pid, 0)
    except ProcessLookupError:
        return  # it has ended already; its parent is about to learn


def drop_cores() -> None:
    """No core files: they would hold prompts, and fill a small disk. The process stays readable in /proc."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def yield_to_others(oom_score_adj: int, nice: int) -> None:
    """Be killed first when memory runs out (-1000..1000, higher goes first), and run last (-20..19).

    A kernel or container that forbids it is told to the log, and the process goes on without.
    """
    try:
        Path("/proc/self/oom_score_adj").write_text(str(oom_score_adj), encoding="ascii")
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    except OSError as error:
        journal.record("worker.priority_refused", error, oom_score_adj=oom_score_adj, nice=nice)


def close_all_but(keep: int) -> None:
    """Close every descriptor except the standard three and `keep`."""
    for fd in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if fd > 2 and fd != keep:
            try:
                os.close(fd)
            except OSError:
                continue  # the listing's own descriptor, closed since
