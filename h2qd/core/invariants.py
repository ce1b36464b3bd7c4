"""What holds after every step. `check` names the first thing that does not.

Called by tests after each step, and by the supervisor when it runs with checks on (`H2Q_CHECK=1`). The last group
is about progress: whatever waits, waits for a worker, a generation or a load that is under way, so nothing waits
for ever as long as the outside world answers.
"""

from collections.abc import Iterator

from h2qd.core.admission import satisfies
from h2qd.core.loads import needs_load
from h2qd.core.records import PRIORITY_MAX, Model, Phase, State, Switch, Ticket, Want
from h2qd.core.states import HOLDING, RESIDENT, Status


def check(state: State) -> str | None:
    """The first broken invariant in words, or None."""
    return next(_broken(state), None)


def _broken(state: State) -> Iterator[str]:
    yield from _broken_models(state)
    yield from _broken_line(state)
    yield from _broken_running(state)
    yield from _broken_switch(state)
    yield from _broken_stop(state)
    yield from _stuck(state)


def _broken_models(state: State) -> Iterator[str]:
    yield from _broken_holders(state)
    for model in state.models.values():
        yield from _broken_model(state, model)
    if state.active is not None and state.active not in state.models:
        yield f"the active model {state.active} is not registered"


def _broken_holders(state: State) -> Iterator[str]:
    workers = [m.worker for m in state.models.values() if m.worker is not None]
    if len(workers) != len(set(workers)):
        yield "two models share a worker"
    if state.rules.exclusive and len([m for m in state.models.values() if _stays(state, m)]) > 1:
        yield "the exclusive policy holds, and two models are to hold memory"


def _broken_model(state: State, model: Model) -> Iterator[str]:
    if (model.status in HOLDING) != (model.worker is not None):
        yield f"{model.name} is {model.status} and its worker is {model.worker}"
    if model.status not in HOLDING and (model.held_bytes or model.planned_bytes):
        yield f"{model.name} is {model.status} and holds {model.held_bytes} bytes"
    if model.status is Status.LOADING and model.name != _loading(state.switch):
        yield f"{model.name} loads outside of a switch"
    if state.rules.exclusive and _stays(state, model) and model.status in RESIDENT and model.name != state.active:
        yield f"{model.name} is {model.status} and {state.active} is active"
    if model.leaving and model.status is not Status.DRAINING:
        yield f"{model.name} is {model.status} and is to leave"
    if model.expires_at is not None and (model.worker is None or model.pinned or model.idle_since is None):
        yield f"{model.name} is timed for being idle, and is not"
    if model.status is Status.DRAINING and not _drains_for(state, model):
        yield f"{model.name} drains for nobody"


def _stays(state: State, model: Model) -> bool:
    """Whether a model holds memory and nothing says that it goes."""
    switch = state.switch
    overlapped = switch is not None and model.name in switch.overlapped
    return model.status in HOLDING - {Status.PARKED, Status.UNLOADING} and not model.leaving and not overlapped


def _loading(switch: Switch | None) -> str | None:
    """The model that a switch has loading now."""
    if switch is None or switch.phase not in (Phase.LOAD, Phase.ROLLBACK):
        return None
    return switch.target if switch.phase is Phase.LOAD else switch.fallback


def _drains_for(state: State, model: Model) -> bool:
    """Whether somebody wants a draining model gone, and it is there yet because it, or another victim, has work."""
    switch = state.switch
    for_switch = switch is not None and switch.phase in (Phase.PATIENCE, Phase.DRAIN) and model.name in switch.victims
    wanted_gone = state.stopping or bool(model.leaving or state.waiting.of(model.name, Want.COLD))
    return for_switch or (wanted_gone and _busy(state, model.name))


def _broken_line(state: State) -> Iterator[str]:
    in_lines = [t.request for line in state.waiting.by_model.values() for t in line]
    if sorted(in_lines) != sorted(state.waiting.by_request):
        yield "the lines of the models are not the line of all"
    for name, line in state.waiting.by_model.items():
        if name not in state.models:
            yield f"request {line[0].request} waits for a model that is not registered"
        for want in Want:
            if len(state.waiting.of(name, want)) > state.rules.queue_max:
                yield f"more requests of kind {want} wait for {name} than may"
        model = state.models.get(name)
        if model is not None and _is_refused(state, model) and state.waiting.of(name, Want.INFER):
            yield f"work waits for {name}, whose server is away"


def _is_refused(state: State, model: Model) -> bool:
    """Whether a model's server is away, and no load is about to tell more."""
    breaker = state.breakers.get(model.server)
    return breaker is not None and breaker.retry_at is not None and model.status is not Status.LOADING


def _broken_running(state: State) -> Iterator[str]:
    losers = state.switch.losers if state.switch is not None else ()
    requests = [t.request for t in (*state.waiting, *losers)] + list(state.running)
    if len(requests) != len(set(requests)):
        yield "a request is in two places"
    for running in state.running.values():
        model = state.models.get(running.ticket.model)
        if model is None or model.status not in RESIDENT or model.worker != running.worker:
            yield f"request {running.ticket.request} runs on a worker that is not resident"
    for name in {r.ticket.model for r in state.running.values()}:
        priorities = [r.ticket.priority for r in state.running.values() if r.ticket.model == name]
        if len(priorities) > 2 * state.rules.slots:
            yield f"{name} runs more requests than its engine takes"
        if sum(priority == PRIORITY_MAX for priority in priorities) > state.rules.slots:
            yield f"{name} runs more requests than it has slots, and none of them pauses for another"


def _broken_switch(state: State) -> Iterator[str]:
    switch = state.switch
    if switch is None:
        return
    if any(name not in state.models for name in (switch.target, *switch.victims, *switch.overlapped)):
        yield "the switch is about a model that is not registered"
        return
    victims = [state.models[name] for name in switch.victims]
    target = state.models[switch.target]
    wanted = any(needs_load(target, ticket) for ticket in state.waiting.of(target.name))
    if switch.phase is not Phase.ROLLBACK and not wanted:
        yield "nobody waits for the switch's target"
    if switch.phase in (Phase.PATIENCE, Phase.DRAIN) and not any(_busy(state, m.name) for m in victims):
        yield "the switch waits for work to end and none runs"
    if switch.phase is Phase.DRAIN and any(m.status is Status.READY for m in victims):
        yield "a victim admits work although patience is over"
    if switch.phase is Phase.UNLOAD and not any(m.status is Status.UNLOADING for m in (target, *victims)):
        yield "the switch waits for unloads and none is under way"
    if switch.phase is Phase.UNLOAD and any(m.status in RESIDENT for m in victims):
        yield "a victim is resident although its unload is awaited"
    loading = _loading(switch)
    if switch.phase in (Phase.LOAD, Phase.ROLLBACK) and (
        loading is None or state.models[loading].status is not Status.LOADING
    ):
        yield f"the switch is in its {switch.phase} and nothing loads"
    if switch.losers and switch.phase is not Phase.ROLLBACK:
        yield "requests wait for a rollback and none is under way"


def _broken_stop(state: State) -> Iterator[str]:
    if state.stopping and (state.waiting or state.switch is not None):
        yield "requests wait or a switch goes on although the daemon stops"
    holding = any(m.status in HOLDING for m in state.models.values())
    if state.stopped != (state.stopping and not holding):
        yield f"stopped is {state.stopped}, while stopping is {state.stopping} and memory held is {holding}"


def _stuck(state: State) -> Iterator[str]:
    for ticket in state.waiting:
        model = state.models[ticket.model]
        if not _awaits(state, model, ticket):
            yield f"request {ticket.request} waits for {model.name} ({model.status}), and nothing moves"


def _awaits(state: State, model: Model, ticket: Ticket) -> bool:
    """Whether what a ticket waits for is under way. Read with the rest: a switch moves, what drains has work."""
    if model.status is Status.UNLOADING:
        return True  # its worker goes
    if ticket.want is Want.COLD:
        return model.status is Status.DRAINING
    if model.status is Status.READY and satisfies(model, ticket):
        full = _running(state, model.name) >= state.rules.slots
        return ticket.want is Want.INFER and (full or not state.guard.admits_work)  # the next reading lets it, or not
    return state.switch is not None or model.status is Status.DRAINING


def _running(state: State, name: str) -> int:
    return sum(r.ticket.model == name for r in state.running.values())


def _busy(state: State, name: str) -> bool:
    return _running(state, name) > 0
