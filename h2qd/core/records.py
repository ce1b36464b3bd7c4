"""The values that the core thinks in. All frozen; mappings are never changed in place.

Times are seconds of a monotonic clock, sizes are bytes. Ids of requests, clients and workers are integers that
the runtime (requests, clients) or the core (workers) hands out and never reuses.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from h2qd.core.guard import Guard, Thresholds
from h2qd.core.lessons import Lesson
from h2qd.core.plan import ModelShape
from h2qd.core.states import Status

STORY_ENTRIES_MAX = 64

PRIORITY_MAX = 2
"""Of a request; 0 is the lowest."""

F16 = "f16"
"""The KV cache at full precision."""


@dataclass(frozen=True, slots=True)
class StoryEntry:
    """One transition of a model."""

    at: float
    was: Status
    now: Status
    why: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Traits:
    """What the configuration says of a model.

    A load that does not fit is given less where it may `degrade`: a KV cache of fewer bits, a context of `min_ctx`
    tokens or more, or one of the `variants`, other models that do the same in less memory. Models of a lower
    `priority` are evicted first. `ttl_s`: how long it stays without work, 0: for ever. `draft` names the model that
    guesses what this one says; empty: none does.
    """

    kv_type: str = F16
    degrade: bool = True
    min_ctx: int = 2048
    variants: tuple[str, ...] = ()
    priority: int = 0
    ttl_s: float = 0.0
    draft: str = ""


@dataclass(frozen=True, slots=True)
class Draft:
    """The draft model that another one names. `shape` is None where it cannot be that one's draft: `why` says so."""

    name: str
    shape: ModelShape | None = None
    why: str = ""

    def missing(self, why: str = "") -> str:
        """That it is not there, in words."""
        return f"without its draft {self.name}: {why or self.why}"


@dataclass(frozen=True, slots=True)
class Terms:
    """What a load is given: `ctx` tokens for each slot, a KV cache of `kv_type`, and the memory planned for it all.

    `asked_ctx` and `asked_kv` are what it was meant to be, which may be more. `file_bytes` of the plan are pages of
    the model's file, which the kernel can take back. `draft` is the draft model that is loaded with it, if any;
    `undrafted` says in words why one that should be is not.
    """

    ctx: int = 0
    kv_type: str = F16
    planned_bytes: int = 0
    asked_ctx: int = 0
    asked_kv: str = F16
    file_bytes: int = 0
    draft: str = ""
    undrafted: str = ""

    @property
    def less(self) -> tuple[str, ...]:
        """What this is less than asked for, in words."""
        kv = f"KV cache {self.kv_type} instead of {self.asked_kv}" if self.kv_type != self.asked_kv else ""
        ctx = f"context {self.ctx} instead of {self.asked_ctx}" if self.ctx != self.asked_ctx else ""
        return tuple(words for words in (ctx, kv, self.undrafted) if words)


@dataclass(frozen=True, slots=True)
class Model:
    """A registered model and where it is.

    `ctx` is what a load asks for unless a ticket says otherwise, `terms` what the last load was given and `given_ctx`
    what the worker made of that, which may be rounded. `loaded_at`: when it last became ready, `idle_since`: when its
    last work ended, None while it has some. `leaving`: why it goes as soon as its work has ended, `expires_at`: when
    it goes for being idle. `file_bytes` of what it holds are pages of files, which the kernel can take back.
    `lessons`: what loads of it were measured to take. `server`: who runs it, empty: this device. `draft`: the model
    that its traits name as its draft.
    """

    name: str
    shape: ModelShape
    ctx: int
    traits: Traits = field(default_factory=Traits)
    lessons: tuple[Lesson, ...] = ()
    server: str = ""
    draft: Draft | None = None
    pinned: bool = False
    status: Status = Status.COLD
    since: float = 0.0
    worker: int | None = None
    terms: Terms = field(default_factory=Terms)
    given_ctx: int = 0
    planned_bytes: int = 0
    held_bytes: int = 0
    file_bytes: int = 0
    load_s: float = 0.0
    loaded_at: float = 0.0
    idle_since: float | None = None
    leaving: str = ""
    expires_at: float | None = None
    reason: str = ""
    failures: tuple[float, ...] = ()
    retry_at: float = 0.0
    broken: bool = False
    story: tuple[StoryEntry, ...] = ()

    @property
    def anonymous_bytes(self) -> int:
        """What it holds that the kernel cannot take back."""
        return max(0, self.held_bytes - self.file_bytes)


class Want(StrEnum):
    """What a request needs of a model."""

    INFER = "infer"
    RESIDENT = "resident"
    COLD = "cold"


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request's claim on a model, from arrival to outcome. `ctx` 0, `kv_type` "": whatever it has, or its default.

    `exact`: nothing less will do. `gentle`: nobody else is to go for it. `activate`: unnamed requests mean the model
    from then on. `asked_model`: what was asked for, where `model` is its variant. `priority`: 0 low to 2 high.
    """

    request: int
    client: int
    want: Want
    model: str
    since: float
    deadline: float | None = None
    ctx: int = 0
    force: bool = False
    reset: bool = False
    kv_type: str = ""
    exact: bool = False
    activate: bool = True
    priority: int = 1
    asked_model: str = ""
    gentle: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """Who waits. Iterates over all tickets, oldest first; `by_model` holds the same tickets, model by model.

    Two views, because a decision is about one model's line or about whoever waited longest, and neither may cost
    a walk through the lines of all models.
    """

    by_request: Mapping[int, Ticket] = field(default_factory=dict)
    by_model: Mapping[str, tuple[Ticket, ...]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self.by_request.values())

    def __len__(self) -> int:
        return len(self.by_request)

    def of(self, name: str, want: Want | None = None) -> tuple[Ticket, ...]:
        """The tickets that wait for a model, oldest first."""
        line = self.by_model.get(name, ())
        return line if want is None else tuple(t for t in line if t.want is want)

    def joined(self, ticket: Ticket) -> "Line":
        """The line with `ticket` at its end."""
        theirs = (*self.by_model.get(ticket.model, ()), ticket)
        return Line({**self.by_request, ticket.request: ticket}, {**self.by_model, ticket.model: theirs})

    def left(self, tickets: Collection[Ticket]) -> "Line":
        """The line without `tickets`, which all stand in it."""
        by_request, by_model = dict(self.by_request), dict(self.by_model)
        for ticket in tickets:
            del by_request[ticket.request]
        for name in {ticket.model for ticket in tickets}:
            rest = tuple(t for t in by_model.pop(name) if t.request in by_request)
            if rest:
                by_model[name] = rest
        return Line(by_request, by_model)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a request got no answer. `code` is one of the protocol's error codes; `fix` may say more than its hint.

    `away`: the server that was to answer is not there, or fails whatever it is asked.
    """

    code: str
    message: str
    because: tuple[str, ...] = ()
    retry_after_s: float | None = None
    fix: str = ""
    away: bool = False


@dataclass(frozen=True, slots=True)
class Breaker:
    """What speaks against a server; one that has none is well.

    `failures`: when requests failed, in a row. It is open, from `since` on, while `retry_at` is set: when the server
    is looked at again, for the `looks`th time.
    """

    failures: tuple[float, ...] = ()
    looks: int = 0
    retry_at: float | None = None
    since: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Running:
    """A granted request. `ending` is set once it was told to stop: what its client will hear."""

    ticket: Ticket
    worker: int
    since: float
    ending: Fault | None = None


@dataclass(frozen=True, slots=True)
class Released:
    """What an unload gave back: `freed_bytes` of `held_bytes` in `took_s`. `parked`: its process stayed."""

    model: str
    held_bytes: int
    freed_bytes: int
    took_s: float
    parked: bool = False


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

    `victims` go before `target` loads on its `terms`, `overlapped` once it has; `fallback` is loaded again when
    `target` fails; `losers` are the requests that wait to hear of `failure` until the rollback has ended.
    """

    serial: int
    target: str
    terms: Terms
    phase: Phase
    began: float
    victims: tuple[str, ...] = ()
    overlapped: tuple[str, ...] = ()
    released: tuple[Released, ...] = ()
    fallback: str | None = None
    fallback_terms: Terms = field(default_factory=Terms)
    failure: Fault | None = None
    losers: tuple[Ticket, ...] = ()


@dataclass(frozen=True, slots=True)
class Kept:
    """A model that is resident, and what its load asked for."""

    name: str
    ctx: int
    kv_type: str


@dataclass(frozen=True, slots=True)
class Memory:
    """What outlives the daemon: which model is active, which are resident (in the order of loads), which pinned."""

    active: str | None = None
    resident: tuple[Kept, ...] = ()
    pinned: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rules:
    """The configuration of the core.

    `exclusive`: one model holds memory at a time; else as many as fit. `strict`: refuse a load that the device has no
    room for now, though the budget has. `park_s`: how long a model that had to go keeps its process, 0: not at all.
    `buffer_bytes`: memory that loads leave free on the device. `offload`: models may go onto an accelerator.
    """

    exclusive: bool = True
    strict: bool = False
    park_s: float = 0.0
    buffer_bytes: int = 0
    offload: bool = True
    guard: Thresholds = field(default_factory=Thresholds)
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
    """Everything the core knows.

    `limit_bytes`: what models may hold in all; `available_bytes`: what is free here beside what models are known to
    hold; `foreign_bytes`: what servers on this device hold of it for models that are not ours. `grants` orders
    clients by their last grant, or their first arrival since: who has the least goes next. Beside that stands when
    they were served last. `breakers`: of the servers that something speaks against.
    """

    rules: Rules = field(default_factory=Rules)
    models: Mapping[str, Model] = field(default_factory=dict)
    waiting: Line = field(default_factory=Line)
    running: Mapping[int, Running] = field(default_factory=dict)
    switch: Switch | None = None
    active: str | None = None
    stopping: bool = False
    stopped: bool = False
    limit_bytes: int = 2**53
    available_bytes: int = 2**53
    accelerator_bytes: int = 0
    foreign_bytes: int = 0
    guard: Guard = field(default_factory=Guard)
    remembered: Memory = field(default_factory=Memory)
    serial: int = 0
    grants: Mapping[int, tuple[int, float]] = field(default_factory=dict)
    breakers: Mapping[str, Breaker] = field(default_factory=dict)
