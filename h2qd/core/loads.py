"""Loads: who waits for one, and how it begins. Called by `switching` and `outcome`."""

from h2qd.core.admission import satisfies
from h2qd.core.effects import ResumeWorker, StartWorker
from h2qd.core.offers import plan_of
from h2qd.core.offload import gpu_layers
from h2qd.core.records import Model, Terms, Ticket, Want
from h2qd.core.states import RESIDENT, Move, Status
from h2qd.core.turn import Turn, worker_of


def needs_load(model: Model, ticket: Ticket) -> bool:
    """Whether a ticket waits for a load; else for a slot, or for an unload (or the drain before it) to end."""
    return ticket.want is not Want.COLD and not (model.status in RESIDENT and satisfies(model, ticket))


def wanted(turn: Turn, name: str) -> tuple[Ticket, ...]:
    """The tickets that a switch to this model would serve."""
    model = turn.model(name)
    return tuple(t for t in turn.waiting_for(name) if needs_load(model, t))


def start_load(turn: Turn, model: Model, terms: Terms) -> None:
    """Have a new worker load a model, or its parked one make a context for it."""
    resumes = model.status is Status.PARKED
    worker = worker_of(model) if resumes else turn.serial()
    turn.move(
        model.name,
        Move.LOAD,
        ", ".join(terms.less),
        worker=worker,
        terms=terms,
        given_ctx=terms.ctx,
        planned_bytes=terms.planned_bytes,
    )
    rules = turn.state.rules
    if resumes:
        turn.emit(ResumeWorker(worker, model.name, terms, rules.slots))
        return
    plan = plan_of(model, terms.ctx, terms.kv_type, rules.slots)
    layers = gpu_layers(model.shape, plan, turn.state.accelerator_bytes) if rules.offload else 0
    turn.emit(StartWorker(worker, model.name, terms, rules.slots, layers))
