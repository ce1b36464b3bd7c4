"""What has happened: the only input of the machine. Past tense, frozen, `now` in monotonic seconds.

Made by the runtime (`runtime.commands` from requests, `runtime.perform` from what effects led to, timers).
"""

from dataclasses import dataclass
from typing import TypeAlias

from h2qd.core.effects import Timer
from h2qd.core.plan import ModelShape
from h2qd.core.records import Fault, Ticket


@dataclass(frozen=True, slots=True)
class ModelRegistered:
    """A model can be used from now on, with a context of `ctx` tokens unless a load says otherwise."""

    now: float
    name: str
    shape: ModelShape
    ctx: int


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
    """A worker has its model in memory: `held_bytes` measured, after `load_s`."""

    now: float
    worker: int
    ctx: int
    held_bytes: int
    load_s: float


@dataclass(frozen=True, slots=True)
class WorkerMeasured:
    """What a resident worker holds now."""

    now: float
    worker: int
    held_bytes: int


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
class StopAsked:
    """The daemon is to end: at once when nothing runs, after `drain_s` at the latest."""

    now: float
    drain_s: float


Event: TypeAlias = (
    ModelRegistered
    | ForgetAsked
    | RequestArrived
    | RequestAbandoned
    | WorkerReady
    | WorkerMeasured
    | WorkerExited
    | GenerationEnded
    | TimerFired
    | LimitRead
    | StopAsked
)
