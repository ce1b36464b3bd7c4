"""What is to be done: the only output of the machine, and the whole side-effect surface. Imperative, frozen.

Performed by `runtime.perform`, in order. Whatever takes time ends in an event.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from h2qd.core.lessons import Lesson
from h2qd.core.records import F16, Fault, Memory, Released, Terms


class Clock(StrEnum):
    """What a timer is for."""

    PATIENCE = "patience"
    DEADLINE = "deadline"
    CANCEL = "cancel"
    DRAIN = "drain"
    IDLE = "idle"


@dataclass(frozen=True, slots=True)
class Timer:
    """A timer's name: `key` is the switch's serial, or the request or worker that it belongs to."""

    clock: Clock
    key: int


@dataclass(frozen=True, slots=True)
class StartWorker:
    """Start process number `worker` and have it load `model` on `terms`; ends in WorkerReady or WorkerExited.

    `terms.planned_bytes` is the plan that it was admitted with, which the runtime holds it to. `gpu_layers` of the
    model go onto an accelerator, if the engine can use one.
    """

    worker: int
    model: str
    terms: Terms
    slots: int
    gpu_layers: int = 0


@dataclass(frozen=True, slots=True)
class ResumeWorker:
    """Have a parked worker make a context on `terms`; ends in WorkerReady or WorkerExited."""

    worker: int
    model: str
    terms: Terms
    slots: int


@dataclass(frozen=True, slots=True)
class ParkWorker:
    """Have a worker free its context and keep its process; ends in WorkerParked or WorkerExited."""

    worker: int


@dataclass(frozen=True, slots=True)
class StopWorker:
    """Have a worker go, by the kill ladder (`at_once`: from its last rung); ends in WorkerExited."""

    worker: int
    at_once: bool = False


@dataclass(frozen=True, slots=True)
class StartGeneration:
    """Hand a request to a worker; ends in GenerationEnded or WorkerExited."""

    request: int
    worker: int


@dataclass(frozen=True, slots=True)
class StopGeneration:
    """Have a worker end a request early; ends in GenerationEnded or WorkerExited."""

    request: int
    worker: int


@dataclass(frozen=True, slots=True)
class Complete:
    """Send the answer that the worker gave."""

    request: int


@dataclass(frozen=True, slots=True)
class TellResident:
    """Answer a load or switch: the model is resident."""

    request: int
    model: str
    changed: bool
    ctx: int
    held_bytes: int
    load_s: float
    released: tuple[Released, ...] = ()
    was_active: str | None = None
    kv_type: str = F16
    less: tuple[str, ...] = ()
    draining: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TellCold:
    """Answer an unload: the model holds nothing. `released` is None when it held nothing before."""

    request: int
    model: str
    released: Released | None = None


@dataclass(frozen=True, slots=True)
class TellPinned:
    """Answer a pin or its end, once what was remembered before is kept."""

    request: int
    model: str
    pinned: bool
    changed: bool


@dataclass(frozen=True, slots=True)
class TellForgotten:
    """Answer a removal: the model is off the list; take it out of the store."""

    request: int
    model: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer a request with an error."""

    request: int
    fault: Fault


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Send TimerFired at `at`."""

    timer: Timer
    at: float


@dataclass(frozen=True, slots=True)
class ClearTimer:
    """The timer is of no more use."""

    timer: Timer


@dataclass(frozen=True, slots=True)
class Publish:
    """Tell whoever watches. `event` is a constant, data are plain values."""

    topic: str
    event: str
    model: str | None = None
    data: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Remember:
    """Keep this across restarts."""

    memory: Memory


@dataclass(frozen=True, slots=True)
class Learn:
    """Keep across restarts what loads of a model were measured to take."""

    model: str
    lessons: tuple[Lesson, ...]


@dataclass(frozen=True, slots=True)
class AskServer:
    """Ask a server what it has, at `at`; ends in ServerAsked."""

    server: str
    at: float


@dataclass(frozen=True, slots=True)
class TrimCaches:
    """Give back whatever memory the daemon itself can do without."""


@dataclass(frozen=True, slots=True)
class Exit:
    """Nothing is left running: the daemon can end."""


Effect: TypeAlias = (
    StartWorker
    | ResumeWorker
    | ParkWorker
    | StopWorker
    | StartGeneration
    | StopGeneration
    | Complete
    | TellResident
    | TellCold
    | TellPinned
    | TellForgotten
    | Refuse
    | SetTimer
    | ClearTimer
    | Publish
    | Remember
    | Learn
    | AskServer
    | TrimCaches
    | Exit
)
