"""Ending requests early, wherever they are: cancelled, their client gone, overdue, or in the way of something.

A waiting request is answered at once, a running one when its worker has let go of it, or is gone. Called by
`machine`, `switching`, `leaving` and `relief`. Invariant: who is ended hears of it exactly once.
"""

from dataclasses import replace

from h2qd.core.effects import Clock, SetTimer, StopGeneration, StopWorker, Timer
from h2qd.core.records import Fault, Model, Switch
from h2qd.core.states import Move
from h2qd.core.turn import Turn, worker_of


def abandon(turn: Turn, request: int, fault: Fault) -> None:
    """End a request with `fault`: in line it is answered now, running when its worker let go of it."""
    state = turn.state
    ticket = state.waiting.by_request.get(request)
    if ticket is not None:
        turn.refuse(ticket, fault)
    running = state.running.get(request)
    if running is not None and running.ending is None:
        turn.mark_ending(running, fault)
        turn.emit(StopGeneration(request, running.worker))
        turn.emit(SetTimer(Timer(Clock.CANCEL, request), turn.now + state.rules.cancel_grace_s))
    if state.switch is not None:
        _leave_losers(turn, state.switch, request, fault)


def _leave_losers(turn: Turn, switch: Switch, request: int, fault: Fault) -> None:
    """End a request that waits for the end of a rollback, if it does."""
    for ticket in switch.losers:
        if ticket.request == request:
            turn.set_switch(replace(switch, losers=tuple(t for t in switch.losers if t is not ticket)))
            turn.refuse(ticket, fault)


def cut_off(turn: Turn, model: Model, fault: Fault) -> None:
    """End all work on a model now, without waiting for its worker to let go."""
    for running in turn.running_on(model.name):
        if running.ending is None:
            turn.emit(StopGeneration(running.ticket.request, running.worker))
        turn.refuse(running.ticket, running.ending or fault)


def cancel_overdue(turn: Turn, request: int) -> None:
    """A worker did not let go of a request in time: it is hung, and goes."""
    running = turn.state.running.get(request)
    if running is None:
        return
    model = turn.model(running.ticket.model)
    hung = Fault("worker_hung", f"cannot go on: the process of {model.name} stopped answering and was killed")
    kill(turn, model, hung, "it did not let go of a cancelled request")


def kill(turn: Turn, model: Model, fault: Fault, why: str) -> None:
    """End a model's worker at once; what runs on it ends with `fault`, or with what it was told to end with."""
    for running in turn.running_on(model.name):
        turn.refuse(running.ticket, running.ending or fault)
    turn.move(model.name, Move.RELEASE, why, leaving="")
    turn.emit(StopWorker(worker_of(model), at_once=True))
