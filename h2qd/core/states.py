"""The residency table: every state a model can be in and every move between them. All of it is here.

`next_status` is the only way from one status to another; a move that the table does not hold is a defect of
the daemon, not of its input. Called by `turn.Turn.move`; drawn by `mermaid` into ARCHITECTURE.md.
"""

from enum import StrEnum


class Status(StrEnum):
    """Where a model is between cold and resident."""

    COLD = "cold"
    """Registered; no process, no memory. Entered at registration, after an unload and after a first crash."""

    LOADING = "loading"
    """A worker is starting or reads the weights; memory up to its plan is spoken for. Left by its outcome."""

    READY = "ready"
    """Resident: the worker answers, its memory is measured. The only status in which work is granted."""

    DRAINING = "draining"
    """Resident, but closed to new work because its memory is wanted; left when the running work has ended."""

    UNLOADING = "unloading"
    """The worker was told to go, or to free its context; its memory counts as held until that is proved."""

    PARKED = "parked"
    """The process lives without a context: the model's file is mapped, and most of it the kernel may take back. Loads
    from here are fast. The first to go when memory is wanted."""

    FAILED = "failed"
    """No process, no memory. Failed lately: not tried again before its back-off ends or a person says so."""


class Move(StrEnum):
    """Why a model changes its status."""

    LOAD = "load"
    LOADED = "loaded"
    ABANDON = "abandon"
    DRAIN = "drain"
    RESUME = "resume"
    RELEASE = "release"
    PARK = "park"
    PARKED = "parked"
    GONE = "gone"
    FAIL = "fail"
    RESET = "reset"


HOLDING = frozenset({Status.LOADING, Status.READY, Status.DRAINING, Status.UNLOADING, Status.PARKED})
"""Statuses with a worker process, and so with memory."""

RESIDENT = frozenset({Status.READY, Status.DRAINING})
"""Statuses in which work can be running."""

TABLE: dict[tuple[Status, Move], Status] = {
    (Status.COLD, Move.LOAD): Status.LOADING,
    (Status.LOADING, Move.LOADED): Status.READY,
    (Status.LOADING, Move.ABANDON): Status.UNLOADING,  # nobody wants it any more, or somebody unloads it
    (Status.LOADING, Move.FAIL): Status.FAILED,
    (Status.READY, Move.DRAIN): Status.DRAINING,
    (Status.READY, Move.RELEASE): Status.UNLOADING,
    (Status.READY, Move.GONE): Status.COLD,  # a first crash: the next request loads it again
    (Status.READY, Move.FAIL): Status.FAILED,  # it crashes again and again
    (Status.DRAINING, Move.RESUME): Status.READY,  # whoever wanted the memory went away
    (Status.DRAINING, Move.RELEASE): Status.UNLOADING,
    (Status.DRAINING, Move.GONE): Status.COLD,
    (Status.DRAINING, Move.FAIL): Status.FAILED,
    (Status.READY, Move.PARK): Status.UNLOADING,
    (Status.DRAINING, Move.PARK): Status.UNLOADING,
    (Status.UNLOADING, Move.PARKED): Status.PARKED,
    (Status.UNLOADING, Move.GONE): Status.COLD,
    (Status.PARKED, Move.LOAD): Status.LOADING,
    (Status.PARKED, Move.RELEASE): Status.UNLOADING,  # its memory is wanted, or nobody came back for it
    (Status.PARKED, Move.GONE): Status.COLD,
    (Status.FAILED, Move.LOAD): Status.LOADING,  # the back-off is over, or a person asks
    (Status.FAILED, Move.RESET): Status.COLD,
}


def next_status(status: Status, move: Move) -> Status:
    """The status that `move` leads to. Raises KeyError when the table has no such move."""
    return TABLE[status, move]


def mermaid() -> str:
    """The table as a mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> cold"]
    lines += [f"    {status} --> {target}: {move}" for (status, move), target in TABLE.items()]
    return "\n".join(lines) + "\n"
