"""Switching: the one way by which memory changes hands. A load into free memory is a switch without victims.

    patience -> drain -> unload -> load -> committed
                                    `-> rollback -> the old model is resident again, the new one failed

At most one switch is under way; the next begins for whoever has waited longest. Work that runs is never cut off
unless a ticket says `force`. Patience bounds starvation: while it lasts the old model goes on admitting, after it
no more. Called by `machine` after every event.
"""

from dataclasses import replace

from h2qd.core import budget, evict
from h2qd.core.admission import load_offer
from h2qd.core.effects import (
    ClearTimer,
    Clock,
    SetTimer,
    StopWorker,
    Timer,
)
from h2qd.core.ending import cut_off
from h2qd.core.leaving import may_park, park, release
from h2qd.core.loads import needs_load, start_load, wanted
from h2qd.core.offers import parked_bytes
from h2qd.core.outcome import answer_losers, switch_of
from h2qd.core.records import Fault, Model, Phase, State, Switch, Terms, Ticket, Want
from h2qd.core.states import HOLDING, RESIDENT, Move, Status
from h2qd.core.turn import Turn, worker_of


def advance(turn: Turn) -> None:
    """Take the switch and unloads as far as they go now, then begin the next switch."""
    if turn.state.switch is not None:
        _advance_switch(turn, turn.state.switch)
    for model in list(turn.holders()):
        if turn.waiting_for(model.name, Want.COLD):
            _advance_unload(turn, model)
        elif model.status is Status.DRAINING and not _must_drain(turn.state, model):
            turn.move(model.name, Move.RESUME, "nobody wants its memory any more")
    if turn.state.switch is None:
        _begin_next(turn)


# --- explicit unloads -------------------------------------------------------------------------------


def _advance_unload(turn: Turn, model: Model) -> None:
    """Unload a model that a ticket wants cold: at once when it is idle or loading, else when its work has ended."""
    if model.status is Status.LOADING:
        fault = Fault("load_cancelled", f"cannot load {model.name}: somebody unloaded it")
        give_up(turn, switch_of(turn, model), model, fault)
        return
    if model.status is Status.PARKED:
        release(turn, model, "unload asked")
        return
    if model.status is Status.READY:
        model = turn.move(model.name, Move.DRAIN, "unload asked")
    if model.status is Status.DRAINING:
        if any(ticket.force for ticket in turn.waiting_for(model.name, Want.COLD)):
            cut_off(turn, model, Fault("unloaded", f"cannot go on: {model.name} was unloaded by force"))
        if not turn.running_on(model.name):
            release(turn, model)


def _must_drain(state: State, model: Model) -> bool:
    switch = state.switch
    for_switch = switch is not None and switch.phase is Phase.DRAIN and model.name in switch.victims
    return state.stopping or bool(model.leaving) or for_switch


# --- the switch -------------------------------------------------------------------------------------


def _begin_next(turn: Turn) -> None:
    """Begin a switch for the oldest ticket that waits for a model that is not there, or about to go."""
    for ticket in turn.state.waiting:
        model = turn.model(ticket.model)
        if not needs_load(model, ticket):
            continue
        offer = load_offer(turn, model, ticket)
        if not isinstance(offer, Fault):
            _begin(turn, model, offer)
            return
        turn.refuse(ticket, offer)  # while it waited the model failed, or memory got short


def _begin(turn: Turn, target: Model, terms: Terms) -> None:
    """Begin a switch that loads `target` on `terms`.

    1. Where one model at a time is the rule, the old one is busy and there is room for both: the load begins at once
       (*overlap*), and the old model goes when the new one is there and its own work has ended.
    2. Else the victims go first: at once when they are idle, after patience and drain when they are busy.
    """
    overlapped = _overlapped(turn, target, terms)
    victims = () if overlapped else _victims(turn, target.name, terms)
    fallback, fallback_terms = _fallback_of(turn, victims)
    busy = _have_work(turn, victims)
    switch = Switch(
        serial=turn.serial(),
        target=target.name,
        terms=terms,
        phase=Phase.PATIENCE if busy else Phase.DRAIN,
        began=turn.now,
        victims=victims,
        overlapped=overlapped,
        fallback=fallback,
        fallback_terms=fallback_terms,
    )
    turn.set_switch(switch)
    if busy:
        turn.emit(SetTimer(Timer(Clock.PATIENCE, switch.serial), turn.now + turn.state.rules.patience_s))


def _have_work(turn: Turn, victims: tuple[str, ...]) -> bool:
    """Whether victims have work, or will have it as soon as `serve` sees that they are open to it again."""
    return any(evict.is_busy(turn.state, turn.model(name)) for name in victims)


def _fallback_of(turn: Turn, victims: tuple[str, ...]) -> tuple[str | None, Terms]:
    """What to load again if a load fails that `victims` go for, and on which terms: what is active, if it goes."""
    active = turn.state.active
    return (active, turn.model(active).terms) if active in victims else (None, Terms())


def _victims(turn: Turn, target: str, terms: Terms) -> tuple[str, ...]:
    """Who goes for a load on terms that were just offered."""
    victims = _possible_victims(turn, target, terms)
    if victims is None:
        raise AssertionError(f"no victims make room for {target}, though it fits")
    return victims


def _possible_victims(turn: Turn, target: str, terms: Terms) -> tuple[str, ...] | None:
    """Who goes for a load on `terms`, to fit what the device has now, else the budget; None when it fits neither.

    Where the device has less than the budget promises, whoever is idle goes: that is the least to be done.
    """
    state = turn.state
    victims = evict.victims(state, target, terms.planned_bytes, budget.room(state), turn.now)
    if victims is not None:
        return victims
    victims = evict.victims(state, target, terms.planned_bytes, state.limit_bytes, turn.now)
    if victims is None:
        return None
    idle = (m.name for m in evict.idle_first(state, turn.now) if m.name != target)
    return (*victims, *(name for name in idle if name not in victims))


def _overlapped(turn: Turn, target: Model, terms: Terms) -> tuple[str, ...]:
    """The models that may stay until the target is there; none when it must not load beside them.

    Who has only just been loaded has the patience before it: two crowds in turns would else do nothing but load.
    """
    rest = budget.others(turn.state, target.name)
    names = tuple(m.name for m in rest if m.status is not Status.PARKED)
    busy = any(turn.running_on(name) for name in names)
    settled = target.status not in HOLDING - {Status.PARKED} and not any(
        m.status is Status.UNLOADING or m.leaving or turn.now - m.loaded_at < turn.state.rules.patience_s
        for m in rest
    )
    fits = budget.charged(rest) + terms.planned_bytes <= budget.room(turn.state)
    return names if turn.state.rules.exclusive and busy and settled and fits else ()


def _advance_switch(turn: Turn, switch: Switch) -> None:
    """Take the switch on to its next phase. A load and a rollback end by what their worker does."""
    if switch.phase is Phase.ROLLBACK:
        return
    tickets = wanted(turn, switch.target)
    if not tickets:
        call_off(turn, switch, "nobody waits for it any more")
    elif any(evict.is_kept(turn.model(name)) for name in _to_go(switch)):
        call_off(turn, switch, "what was to go for it was pinned")
    elif switch.phase in (Phase.PATIENCE, Phase.DRAIN) and not turn.state.guard.admits_loads:
        call_off(turn, switch, "the device is short of memory")
    elif switch.phase in (Phase.PATIENCE, Phase.DRAIN):
        _advance_drain(turn, switch, tickets)
    elif switch.phase is Phase.UNLOAD:
        _advance_victims(turn, switch, tickets)


def _to_go(switch: Switch) -> set[str]:
    """The models that lose their memory to the switch, before or after its load."""
    return {*switch.victims, *switch.overlapped} - {switch.target}


def call_off(turn: Turn, switch: Switch, why: str) -> None:
    """End a switch where it is. What was not told to go yet goes on; a worker that loads goes, as in any unload."""
    _end_patience(turn, switch)
    turn.set_switch(None)
    answer_losers(turn, switch, f"and the rollback was given up: {why}")
    for model in list(turn.holders()):
        if model.status is Status.LOADING:
            turn.move(model.name, Move.ABANDON, why)
            turn.emit(StopWorker(worker_of(model), at_once=True))


def give_up(turn: Turn, switch: Switch, loading: Model, fault: Fault) -> None:
    """Give up a load under way; who waits for it hears `fault`."""
    turn.refuse_all(wanted(turn, loading.name), fault)
    call_off(turn, switch, fault.message)


def _advance_drain(turn: Turn, switch: Switch, tickets: tuple[Ticket, ...]) -> None:
    if any(ticket.force for ticket in tickets):
        fault = Fault("unloaded", f"cannot go on: the memory was taken by force for {switch.target}")
        for name in switch.victims:
            cut_off(turn, turn.model(name), fault)
    if switch.phase is Phase.PATIENCE:
        chosen = _choose_again(turn, switch)
        if chosen is None:
            call_off(turn, switch, "it does not fit any more")
            return
        switch = chosen
    if any(turn.running_on(name) for name in switch.victims):
        return  # while patience lasts, `serve` grants before this looks: the line in front of a victim counts as work
    _end_patience(turn, switch)
    kept_bytes = switch.terms.planned_bytes
    for name in switch.victims:
        model = turn.model(name)
        if model.status is Status.PARKED:
            release(turn, model, f"its memory is wanted for {switch.target}")
        elif model.status in RESIDENT:
            kept_bytes = _let_go(turn, model, switch, kept_bytes)
    turn.set_switch(replace(switch, phase=Phase.UNLOAD))


def _choose_again(turn: Turn, switch: Switch) -> Switch | None:
    """Look for a better way while patience lasts: a request may have rescued a victim, another may be idle by now.

    None when there is no way left.
    """
    overlapped = _overlapped(turn, turn.model(switch.target), switch.terms)
    victims = () if overlapped else _possible_victims(turn, switch.target, switch.terms)
    if victims is None:
        return None
    if (set(victims), overlapped) != (set(switch.victims), switch.overlapped):
        fallback, terms = _fallback_of(turn, victims)
        switch = replace(switch, victims=victims, overlapped=overlapped, fallback=fallback, fallback_terms=terms)
        turn.set_switch(switch)
    return switch


def _let_go(turn: Turn, model: Model, switch: Switch, kept_bytes: int) -> int:
    """Have a victim go, or park it where the rules say so and there is room for it. Returns what is kept by then."""
    rest = budget.others(turn.state, switch.target)
    staying = budget.charged(m for m in rest if m.name not in switch.victims)
    if model.name == switch.target or not may_park(turn, model, kept_bytes + staying):
        release(turn, model)
        return kept_bytes
    park(turn, model)
    return kept_bytes + parked_bytes(model, turn.state.rules.slots)


def _end_patience(turn: Turn, switch: Switch) -> None:
    if switch.phase is Phase.PATIENCE:
        turn.emit(ClearTimer(Timer(Clock.PATIENCE, switch.serial)))


def patience_over(turn: Turn, serial: int) -> None:
    """Put up the barrier: what must go admits nothing more. Unless by now it may stay until the target is there."""
    switch = turn.state.switch
    if switch is None or switch.serial != serial or switch.phase is not Phase.PATIENCE:
        return
    if _overlapped(turn, turn.model(switch.target), switch.terms):
        return  # `advance` begins the load
    for name in switch.victims:
        if turn.model(name).status is Status.READY:
            turn.move(name, Move.DRAIN, f"{switch.target} waited {turn.now - switch.began:.1f} s")
    turn.set_switch(replace(switch, phase=Phase.DRAIN))


def _advance_victims(turn: Turn, switch: Switch, tickets: tuple[Ticket, ...]) -> None:
    """Once the memory is back, load for the oldest ticket that still may; who began the switch may be gone."""
    target = turn.model(switch.target)
    if any(m.status in HOLDING - {Status.PARKED} for m in (target, *map(turn.model, switch.victims))):
        return
    offers = (load_offer(turn, target, ticket) for ticket in tickets)
    terms = next((offer for offer in offers if not isinstance(offer, Fault)), None)
    if terms is None:
        turn.set_switch(None)  # `_begin_next` tells them why
        return
    if not _make_room(turn, switch, terms):
        return
    turn.set_switch(replace(switch, phase=Phase.LOAD, terms=terms))
    start_load(turn, target, terms)


def _make_room(turn: Turn, switch: Switch, terms: Terms) -> bool:
    """Whether a load on `terms` fits beside what holds memory now. If not, more has to go first: it is told to."""
    victims = () if switch.overlapped else _victims(turn, switch.target, terms)
    if not victims:
        return True
    busy = _have_work(turn, victims)
    phase = Phase.PATIENCE if busy else Phase.DRAIN
    turn.set_switch(replace(switch, phase=phase, terms=terms, victims=(*switch.victims, *victims)))
    if busy:
        turn.emit(SetTimer(Timer(Clock.PATIENCE, switch.serial), turn.now + turn.state.rules.patience_s))
    return False
