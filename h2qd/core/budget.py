"""The budget: what memory is spoken for, by whom, and what is left. Bytes.

A model is *charged* what it was planned to take or what it was measured to hold, whichever is more, from the moment
its load begins until its process is proved gone. Three layers share the device's memory: the models, what the daemon
itself works with, and a buffer that stays free. Called by `offers`, `evict` and `relief`, and for what clients are
shown. Invariant: reserved + committed + free - over is a layer's limit; all limits add up to no more than there is.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from h2qd.core.records import Model, State
from h2qd.core.states import HOLDING, Status


def charge(model: Model) -> int:
    """What a model is charged."""
    return max(model.planned_bytes, model.held_bytes) if model.status in HOLDING else 0


def charged(models: Iterable[Model]) -> int:
    """What several models are charged together."""
    return sum(charge(model) for model in models)


def others(state: State, name: str) -> tuple[Model, ...]:
    """The models that hold memory, but for one."""
    return tuple(m for m in state.models.values() if m.status in HOLDING and m.name != name)


def room(state: State) -> int:
    """What models may be charged in all right now: the budget, or less where the device itself has less to give.

    What models hold already is theirs; what others took from the device meanwhile is not there to be planned with.
    Pages of their files count as available, since the kernel can have them back. Those of models that others run in a
    server here do as well, as the kernel tells it, and yet are in use: so such models are charged to the budget.
    """
    left_bytes = state.limit_bytes - state.foreign_bytes
    return max(0, min(left_bytes, device(state) - state.rules.buffer_bytes))


def device(state: State) -> int:
    """What models could hold on the device to the last byte, as things are now."""
    return sum(m.anonymous_bytes for m in state.models.values()) + state.available_bytes


def beside(state: State, available_bytes: int) -> int:
    """What is free beside what models are known to hold, when `available_bytes` were read.

    While a load or an unload is under way nobody knows how much of it has moved already: then what was known before
    stands, as far as it can be true.
    """
    moving = [m for m in state.models.values() if m.status in (Status.LOADING, Status.UNLOADING)]
    to_come = sum(charge(m) - m.anonymous_bytes for m in moving)
    to_go = sum(m.anonymous_bytes for m in moving if m.status is Status.UNLOADING)
    return max(available_bytes - to_go, min(state.available_bytes, available_bytes + to_come))


def free(state: State, without: Collection[str] = ()) -> int:
    """What is left of the budget, not counting the models `without`; negative when it is overdrawn."""
    return state.limit_bytes - charged(m for m in state.models.values() if m.name not in without)


@dataclass(frozen=True, slots=True)
class Limits:
    """How the device's memory is shared out: `max_bytes` in all."""

    max_bytes: int
    models_bytes: int
    working_bytes: int
    buffer_bytes: int

    @property
    def fault(self) -> str:
        """What is wrong with these limits, in words; empty when they add up."""
        taken = self.models_bytes + self.working_bytes + self.buffer_bytes
        if taken <= self.max_bytes:
            return ""
        return f"models, working memory and the safety buffer take {taken} bytes, of {self.max_bytes} in all"


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the ledger: planned and not held yet, held as measured, and what is left or overdrawn."""

    name: str
    limit_bytes: int
    reserved_bytes: int
    committed_bytes: int

    @property
    def free_bytes(self) -> int:
        """What can still be had."""
        return max(0, self.limit_bytes - self.reserved_bytes - self.committed_bytes)

    @property
    def over_bytes(self) -> int:
        """What is held or promised beyond the limit."""
        return max(0, self.reserved_bytes + self.committed_bytes - self.limit_bytes)


def ledger(limits: Limits, state: State, working_bytes: int) -> tuple[Layer, ...]:
    """The layers as they stand; `working_bytes` is what the daemon and its idle processes hold."""
    holding = [m for m in state.models.values() if m.status in HOLDING]
    committed = sum(m.held_bytes for m in holding)
    return (
        Layer("models", limits.models_bytes, charged(holding) - committed, committed),
        Layer("working", limits.working_bytes, 0, working_bytes),
        Layer("buffer", limits.buffer_bytes, limits.buffer_bytes, 0),
    )
