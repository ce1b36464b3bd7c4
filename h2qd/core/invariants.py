"""What holds after every step. `check` names the first thing that does not.

Called by tests after each step, and by the supervisor when it runs with checks on (`H2Q_CHECK=1`).
"""

from collections.abc import Iterator

from h2qd.core.admission import satisfies
from h2qd.core.records import Phase, State, Want
from h2qd.core.states import HOLDING, RESIDENT, Status


def check(state: State) -> str | None:
    """The first broken invariant in words, or None."""
    return next(_broken(state), None)


def _broken(state: State) -> Iterator[str]:
    yield from _broken_models(state)
    yield from _broken_requests(state)
    yield from _broken_switch(state)
    yield from _stuck(state)


def _broken_models(state: State) -> Iterator[str]:
    workers = [m.worker for m in state.models.values() if m.worker is not None]
    if len(workers) != len(set(workers)):
        yield "two models share a worker"
    if len(workers) > 1:
        yield "the exclusive policy holds, and two models hold memory"
    for model in state.models.values():
        if (model.status in HOLDING) != (model.worker is not None):
            yield f"{model.name} is {model.status} and its worker is {model.worker}"
        if model.status not in HOLDING and (model.held_bytes or model.planned_bytes):
            yield f"{model.name} is {model.status} and holds {model.held_bytes} bytes"
        if model.status is Status.LOADING and (state.switch is None or state.stopping):
            yield f"{model.name} loads outside of a switch"
    if state.active is not None and state.active not in state.models:
        yield f"the active model {state.active} is not registered"


def _broken_requests(state: State) -> Iterator[str]:
    losers = state.switch.losers if state.switch is not None else ()
    requests = [t.request for t in (*state.waiting, *losers)] + list(state.running)
    if len(requests) != len(set(requests)):
        yield "a request is in two places"
    for ticket in state.waiting:
        if ticket.model not in state.models:
            yield f"request {ticket.request} waits for a model that is not registered"
    for running in state.running.values():
        model = state.models.get(running.ticket.model)
        if model is None or model.status not in RESIDENT or model.worker != running.worker:
            yield f"request {running.ticket.request} runs on a worker that is not resident"
    for name in state.models:
        if sum(r.ticket.model == name for r in state.running.values()) > state.rules.slots:
            yield f"{name} runs more requests than it has slots"
        if sum(t.model == name for t in state.waiting) > state.rules.queue_max:
            yield f"the line of {name} is longer than its bound"
    if state.stopping and state.waiting:
        yield "requests wait although the daemon stops"


def _broken_switch(state: State) -> Iterator[str]:
    switch = state.switch
    if switch is None:
        return
    if switch.target not in state.models or any(name not in state.models for name in switch.victims):
        yield "the switch is about a model that is not registered"
        return
    victims = [state.models[name].status for name in switch.victims]
    if switch.phase is Phase.UNLOAD and not any(status is Status.UNLOADING for status in victims):
        yield "the switch waits for unloads and none is under way"
    if switch.phase is Phase.UNLOAD and any(status in RESIDENT for status in victims):
        yield "a victim is resident although its unload is awaited"
    if switch.phase is Phase.LOAD and state.models[switch.target].status is not Status.LOADING:
        yield "the switch loads a target that does not load"
    if switch.phase is Phase.ROLLBACK and (
        switch.fallback is None or state.models[switch.fallback].status is not Status.LOADING
    ):
        yield "the switch rolls back and its fallback does not load"
    if switch.losers and switch.phase is not Phase.ROLLBACK:
        yield "requests wait for a rollback and none is under way"


def _stuck(state: State) -> Iterator[str]:
    """Whoever waits, waits for something that will happen."""
    for ticket in state.waiting:
        model = state.models.get(ticket.model)
        if model is None or state.switch is not None:
            continue
        busy = any(r.ticket.model == ticket.model for r in state.running.values())
        if ticket.want is Want.COLD and model.status is not Status.UNLOADING and not busy:
            yield f"request {ticket.request} waits for {model.name} to be unloaded, which does not happen"
        if ticket.want is not Want.COLD and model.status is not Status.UNLOADING and not state.running:
            other = [m.name for m in state.models.values() if m.status is Status.UNLOADING]
            served = model.status is Status.READY and satisfies(model, ticket)
            if served or not other:
                yield f"request {ticket.request} waits for {model.name} ({model.status}), and nothing moves"
