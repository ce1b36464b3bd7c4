"""What has happened: the only input of the machine. Past tense, frozen, `now` in monotonic seconds.

Made by the runtime (`commands` and `claims` from requests, `perform` from what effects led to, timers).
"""

from dataclasses import dataclass, field
from typing import TypeAlias

from h2qd.core.effects import Timer
from h2qd.core.lessons import Lesson
from h2qd.core.plan import ModelShape
from h2qd.core.records import Fault, Kept, Ticket, Traits


@dataclass(frozen=True, slots=True)
class ModelRegistered:
    """A model can be used from now on, with a context of `ctx` tokens unless a load says otherwise.

    `server`: who runs it, empty: this device.
    """

    now: float
    name: str
    shape: ModelShape
    ctx: int
    traits: Traits = field(default_factory=Traits)
    lessons: tuple[Lesson, ...] = ()
    server: str = ""


@dataclass(frozen=True, slots=True)
class ServerAsked:
    """A server told what it has (`fault` is None), or did not."""

    now: float
    server: str
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class Recalled:
    """What was active, pinned and resident when the daemon ended last; models that are gone are passed over.

    Resident ones come back by requests of their own, which come before this: until they are served, they stay kept.
    """

    now: float
    active: str | None
    pinned: tuple[str, ...] = ()
    resident: tuple[Kept, ...] = ()


@dataclass(frozen=True, slots=True)
class PinAsked:
    """Somebody wants a model pinned, or not any more; answered as `request`."""

    now: float
    request: int
    name: str
    pinned: bool


@dataclass(frozen=True, slots=True)
class ForgetAsked:
    """Somebody wants the model off the list; answered as `request`."""

    now: float
    request: int
    name: str


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """A client wants something of a model. An empty `ticket.model` means the active one."""

    now: float
    ticket: Ticket


@dataclass(frozen=True, slots=True)
class RequestAbandoned:
    """A request is no longer wanted: cancelled, its client is gone, or it broke a rule. `fault` tells which."""

    now: float
    request: int
    fault: Fault


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker has its model in memory, after `load_s`: `held_bytes`, of which `file_bytes` are page cache.

    `undrafted`: why it has not got the draft model that it was to load too.
    """

    now: float
    worker: int
    ctx: int
    held_bytes: int
    load_s: float
    file_bytes: int = 0
    undrafted: str = ""


@dataclass(frozen=True, slots=True)
class WorkerMeasured:
    """What a resident worker holds now. `exercised`: a context of it was full, so it will hardly take more."""

    now: float
    worker: int
    held_bytes: int
    exercised: bool = False
    file_bytes: int = 0


@dataclass(frozen=True, slots=True)
class WorkerParked:
    """A worker has freed its context: it holds `held_bytes` that the kernel cannot take back, `freed_bytes` less."""

    now: float
    worker: int
    held_bytes: int
    freed_bytes: int = 0
    took_s: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """A worker process is gone. `fault` says why, if it was not told to go: a crash, a hang, a load that failed."""

    now: float
    worker: int
    fault: Fault
    held_bytes: int = 0
    freed_bytes: int = 0
    took_s: float = 0.0


@dataclass(frozen=True, slots=True)
class GenerationEnded:
    """A worker is done with a request: answered when `fault` is None."""

    now: float
    request: int
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer that `SetTimer` asked for."""

    now: float
    timer: Timer


@dataclass(frozen=True, slots=True)
class LimitRead:
    """What models may hold in all."""

    now: float
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryRead:
    """The device's memory now: `used_share` (0..1) is in use, `available_bytes` can be had.

    `stalled`: tasks wait for memory. `accelerator_bytes` are free on the accelerator that has most. `foreign_bytes`:
    what servers on this device hold of it for models that are not ours.
    """

    now: float
    used_share: float
    available_bytes: int
    stalled: bool = False
    accelerator_bytes: int = 0
    foreign_bytes: int = 0


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The daemon is to end: at once when nothing runs, after `drain_s` at the latest."""

    now: float
    drain_s: float


Event: TypeAlias = (
    ModelRegistered
    | ServerAsked
    | Recalled
    | PinAsked
    | ForgetAsked
    | RequestArrived
    | RequestAbandoned
    | WorkerReady
    | WorkerMeasured
    | WorkerParked
    | WorkerExited
    | GenerationEnded
    | TimerFired
    | LimitRead
    | MemoryRead
    | StopAsked
)
