"""One step in the making: the state as changed so far and the effects decided so far.

A `Turn` lives inside one call of `machine.step` and is seen by nobody else. All changes of the state go through
its methods, so that a status never changes without a line in the model's story and a notice, and a request
never leaves the state without exactly one answer.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

from h2qd.core.effects import (
    ClearTimer,
    Clock,
    Complete,
    Effect,
    Publish,
    Refuse,
    Remember,
    SetTimer,
    StartGeneration,
    TellCold,
    TellResident,
    Timer,
)
from h2qd.core.records import (
    STORY_ENTRIES_MAX,
    Fault,
    Kept,
    Memory,
    Model,
    Running,
    State,
    StoryEntry,
    Switch,
    Ticket,
    Want,
)
from h2qd.core.states import HOLDING, RESIDENT, Move, next_status


def worker_of(model: Model) -> int:
    """The worker of a model that holds memory."""
    if model.worker is None:
        raise AssertionError(f"{model.name} is {model.status} without a worker")
    return model.worker


class Turn:
    """The working copy of a state during one step. `now` is the event's time."""

    def __init__(self, state: State, now: float) -> None:
        self.state = state
        self.now = now
        self.effects: list[Effect] = []

    def emit(self, effect: Effect) -> None:
        """Decide on an effect."""
        self.effects.append(effect)

    # --- models ------------------------------------------------------------------------------------

    def model(self, name: str) -> Model:
        """The model of that name; it is registered."""
        return self.state.models[name]

    def model_of(self, worker: int) -> Model | None:
        """The model whose worker that is, or None for a worker that is history."""
        return next((m for m in self.state.models.values() if m.worker == worker), None)

    def holders(self) -> Iterator[Model]:
        """The models with a worker process."""
        return (m for m in self.state.models.values() if m.status in HOLDING)

    def change(self, name: str, **fields: Any) -> Model:
        """Change facts of a model, but not its status. What it holds more is free no longer, and back."""
        before = self.state.models[name]
        model = replace(before, **fields)
        free_bytes = self.state.available_bytes - (model.anonymous_bytes - before.anonymous_bytes)
        self.state = replace(self.state, models={**self.state.models, name: model}, available_bytes=free_bytes)
        return model

    def move(self, name: str, move: Move, detail: str = "", **fields: Any) -> Model:
        """Move a model along the table, and tell the story of it."""
        before = self.state.models[name]
        status = next_status(before.status, move)
        entry = StoryEntry(self.now, before.status, status, move.value, detail)
        story = (*before.story, entry)[-STORY_ENTRIES_MAX:]
        after = self.change(name, status=status, since=self.now, story=story, **fields)
        self.emit(
            Publish(
                "model",
                "model.moved",
                name,
                {
                    "was": before.status.value,
                    "now": status.value,
                    "why": move.value,
                    "detail": detail,
                    "size_bytes": after.held_bytes,
                },
            )
        )
        return after

    def activate(self, name: str | None) -> None:
        """Make a model the one that unnamed requests mean."""
        if self.state.active != name:
            self.state = replace(self.state, active=name)

    def remember(self) -> None:
        """Have kept across restarts what is not yet. During a switch or a stop the residents stay as kept before."""
        state = self.state
        resident = state.remembered.resident
        if state.switch is None and not state.stopping:
            order = sorted(state.models.values(), key=lambda m: m.loaded_at)
            staying = [m for m in order if m.status in RESIDENT and not m.leaving]
            resident = tuple(Kept(m.name, m.terms.asked_ctx, m.terms.asked_kv) for m in staying)
        memory = Memory(state.active, resident, tuple(m.name for m in state.models.values() if m.pinned))
        if memory != state.remembered:
            self.state = replace(state, remembered=memory)
            self.emit(Remember(memory))

    # --- requests ----------------------------------------------------------------------------------

    def turn_away(self, ticket: Ticket, fault: Fault) -> None:
        """Answer a request with an error before it was let in."""
        self.emit(Refuse(ticket.request, fault))

    def wait(self, ticket: Ticket) -> None:
        """Put a ticket at the end of the line. A client not known yet stands behind whoever waits already."""
        self.state = replace(self.state, waiting=self.state.waiting.joined(ticket))
        if ticket.client not in self.state.grants:
            self._rank(ticket.client, self.state.serial)
        if ticket.deadline is not None:
            self.emit(SetTimer(Timer(Clock.DEADLINE, ticket.request), ticket.deadline))

    def waiting_for(self, name: str, want: Want | None = None) -> tuple[Ticket, ...]:
        """The tickets that wait for a model, oldest first."""
        return self.state.waiting.of(name, want)

    def running_on(self, name: str) -> tuple[Running, ...]:
        """The requests that run on a model."""
        return tuple(r for r in self.state.running.values() if r.ticket.model == name)

    def grant(self, ticket: Ticket, worker: int) -> None:
        """Let a waiting request run."""
        self._leave_line(ticket)
        running = {**self.state.running, ticket.request: Running(ticket, worker, self.now)}
        self.state = replace(self.state, running=running)
        self._rank(ticket.client, self.serial())
        self.emit(StartGeneration(ticket.request, worker))

    def tell(self, ticket: Ticket, answer: TellResident | TellCold) -> None:
        """Answer a waiting request about residency."""
        self._leave_line(ticket)
        self._clear_deadline(ticket)
        self.emit(answer)

    def refuse(self, ticket: Ticket, fault: Fault) -> None:
        """Answer a request that was let in with an error."""
        self._leave_line(ticket)
        self._stop_running(ticket.request)
        self._clear_deadline(ticket)
        self.emit(Refuse(ticket.request, fault))

    def refuse_all(self, tickets: Collection[Ticket], fault: Fault) -> None:
        """Answer many waiting requests with the same error."""
        self.set_aside(tickets)
        for ticket in tickets:
            self.refuse(ticket, fault)

    def complete(self, running: Running) -> None:
        """Let the worker's answer go out."""
        self._stop_running(running.ticket.request)
        self._clear_deadline(running.ticket)
        self.emit(Complete(running.ticket.request))

    def mark_ending(self, running: Running, fault: Fault) -> None:
        """Note what a running request will hear once its worker let go of it."""
        changed = replace(running, ending=fault)
        self.state = replace(self.state, running={**self.state.running, running.ticket.request: changed})

    def set_aside(self, tickets: Collection[Ticket]) -> None:
        """Take tickets out of the line; whoever does so answers them, or keeps them as the losers of a switch."""
        self.state = replace(self.state, waiting=self.state.waiting.left(tickets))

    def _leave_line(self, ticket: Ticket) -> None:
        if ticket.request in self.state.waiting.by_request:
            self.set_aside((ticket,))

    def _rank(self, client: int, rank: int) -> None:
        grants = {**self.state.grants, client: (rank, self.now)}
        if len(grants) > _CLIENTS_KNOWN_MAX:
            del grants[min(grants, key=grants.__getitem__)]
        self.state = replace(self.state, grants=grants)

    def _stop_running(self, request: int) -> None:
        running = self.state.running.get(request)
        if running is None:
            return
        rest = {key: r for key, r in self.state.running.items() if key != request}
        self.state = replace(self.state, running=rest)
        rank, _ = self.state.grants.get(running.ticket.client, (self.state.serial, 0.0))
        self._rank(running.ticket.client, rank)  # it was served until now
        if running.ending is not None:
            self.emit(ClearTimer(Timer(Clock.CANCEL, request)))

    def _clear_deadline(self, ticket: Ticket) -> None:
        if ticket.deadline is not None:
            self.emit(ClearTimer(Timer(Clock.DEADLINE, ticket.request)))

    # --- the switch --------------------------------------------------------------------------------

    def serial(self) -> int:
        """A number never used before: names workers and switches."""
        self.state = replace(self.state, serial=self.state.serial + 1)
        return self.state.serial

    def set_switch(self, switch: Switch | None) -> None:
        """Put the switch into its next phase, or end it."""
        self.state = replace(self.state, switch=switch)


_CLIENTS_KNOWN_MAX = 1024
