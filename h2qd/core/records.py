"""The values that the core thinks in. All frozen; mappings are never changed in place.

Times are seconds of a monotonic clock, sizes are bytes. Ids of requests, clients and workers are integers that
the runtime (requests, clients) or the core (workers) hands out and never reuses.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from h2qd.core.plan import ModelShape
from h2qd.core.states import Status

STORY_ENTRIES_MAX = 64


@dataclass(frozen=True, slots=True)
class StoryEntry:
    """One transition of a model."""

    at: float
    was: Status
    now: Status
    why: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """A registered model and where it is. `ctx` is what a load asks for, `given_ctx` what the resident one has."""

    name: str
    shape: ModelShape
    ctx: int
    status: Status = Status.COLD
    since: float = 0.0
    worker: int | None = None
    given_ctx: int = 0
    planned_bytes: int = 0
    held_bytes: int = 0
    load_s: float = 0.0
    reason: str = ""
    failures: tuple[float, ...] = ()
    retry_at: float = 0.0
    broken: bool = False
    story: tuple[StoryEntry, ...] = ()


class Want(StrEnum):
    """What a request needs of a model."""

    INFER = "infer"
    RESIDENT = "resident"
    COLD = "cold"


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request's claim on a model, from arrival to outcome. `ctx` 0: whatever it has, or its default."""

    request: int
    client: int
    want: Want
    model: str
    since: float
    deadline: float | None = None
    ctx: int = 0
    force: bool = False
    reset: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a request got no answer. `code` is one of the protocol's error codes."""

    code: str
    message: str
    because: tuple[str, ...] = ()
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Running:
    """A granted request. `ending` is set once it was told to stop: what its client will hear."""

    ticket: Ticket
    worker: int
    since: float
    ending: Fault | None = None


@dataclass(frozen=True, slots=True)
class Released:
    """What an unload gave back: `freed_bytes` of `held_bytes` in `took_s`."""

    model: str
    held_bytes: int
    freed_bytes: int
    took_s: float


class Phase(StrEnum):
    """Where a switch is."""

    PATIENCE = "patience"
    """What must go is busy and still admits work, until its clients pause or the patience ends."""

    DRAIN = "drain"
    """What must go admits nothing more; its running work ends."""

    UNLOAD = "unload"
    """What must go was told to; its memory is awaited."""

    LOAD = "load"
    """The target loads."""

    ROLLBACK = "rollback"
    """The target failed; what was active before loads again."""


@dataclass(frozen=True, slots=True)
class Switch:
    """A change of residency under way, as a value. At most one exists.

    `victims` go before `target` loads; `fallback` is loaded again when `target` fails; `losers` are the requests
    that wait to hear of `failure` until the rollback has ended.
    """

    serial: int
    target: str
    ctx: int
    phase: Phase
    began: float
    victims: tuple[str, ...] = ()
    released: tuple[Released, ...] = ()
    fallback: str | None = None
    fallback_ctx: int = 0
    failure: Fault | None = None
    losers: tuple[Ticket, ...] = ()


@dataclass(frozen=True, slots=True)
class Rules:
    """The configuration of the core."""

    patience_s: float = 2.0
    queue_max: int = 64
    slots: int = 1
    cancel_grace_s: float = 5.0
    backoff_first_s: float = 0.5
    backoff_max_s: float = 30.0
    breaker_count: int = 5
    breaker_window_s: float = 60.0
    stable_s: float = 30.0


@dataclass(frozen=True, slots=True)
class State:
    """Everything the core knows. `limit_bytes`: what models may hold in all; `grants` orders clients by last grant."""

    rules: Rules = field(default_factory=Rules)
    models: Mapping[str, Model] = field(default_factory=dict)
    waiting: tuple[Ticket, ...] = ()
    running: Mapping[int, Running] = field(default_factory=dict)
    switch: Switch | None = None
    active: str | None = None
    stopping: bool = False
    stopped: bool = False
    limit_bytes: int = 2**53
    serial: int = 0
    grants: Mapping[int, int] = field(default_factory=dict)
