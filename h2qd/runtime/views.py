"""State to replies: what clients are shown, derived from the core's state and never stored."""

import dataclasses
import time

from h2qd.core import breakers, budget, evict
from h2qd.core.effects import TellResident
from h2qd.core.offers import has_draft, learned_bytes, offer_for, plan_of
from h2qd.core.records import Breaker, Fault, Model, Phase, Released, State, Terms, Ticket, Want
from h2qd.core.states import HOLDING, Status
from h2qd.runtime.calls import Call, Calls
from h2qd.runtime.residents import Residents
from h2qd.store.registry import Manifest
from h2qd.wire import messages as m
from h2qd.wire.names import shown

_PHASES = {
    Phase.PATIENCE: "queued",
    Phase.DRAIN: "draining",
    Phase.UNLOAD: "unloading",
    Phase.LOAD: "loading",
    Phase.ROLLBACK: "rolling back",
}


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def _wall_ms(at: float) -> int:
    """Wall-clock ms of a moment on the monotonic clock."""
    return round((time.time() - (time.monotonic() - at)) * 1000)


def released(gone: Released) -> m.Released:
    """What an unload gave back."""
    return m.Released(gone.model, gone.held_bytes, gone.freed_bytes, round(gone.took_s * 1000, 1))


def residency(told: TellResident, arrived: float) -> m.Residency:
    """The outcome of a load or switch."""
    return m.Residency(
        model=told.model,
        changed=told.changed,
        ctx=told.ctx,
        memory_bytes=told.held_bytes,
        load_ms=round(told.load_s * 1000, 1),
        total_ms=round((time.monotonic() - arrived) * 1000, 1),
        unloaded=[released(gone) for gone in told.released if not gone.parked],
        was_active=told.was_active,
        kv_type=told.kv_type,
        degraded=list(told.less),
        draining=list(told.draining),
        parked=[gone.model for gone in told.released if gone.parked],
    )


def progress(state: State, residents: Residents, call: Call) -> m.Progress:
    """How far a call is."""
    running = state.running.get(call.number)
    if running is not None:
        decoding = call.text is not None and call.text.tokens_seen > 0
        fraction = None if decoding else call.prefilled
        return m.Progress("decode" if decoding else "prefill", call.name, running.ticket.model, fraction)
    switch = state.switch
    if switch is not None and any(t.request == call.number for t in switch.losers):
        return m.Progress(_PHASES[switch.phase], call.name, switch.fallback)
    line = state.waiting.of(call.model or "")
    position = next((i for i, t in enumerate(line, 1) if t.request == call.number), None)
    if position is None:
        return call.progress or m.Progress("waiting", call.name, call.model)
    if switch is None or switch.target != call.model:
        if state.models[line[0].model].status is Status.UNLOADING:
            return m.Progress("unloading", call.name, call.model)
        return m.Progress("queued", call.name, call.model, position=position)
    target = state.models[switch.target]
    loading = switch.phase is Phase.LOAD and target.worker is not None
    fraction = round(residents.fraction(target.worker), 3) if loading and target.worker is not None else None
    queued = position if switch.phase is Phase.PATIENCE else None
    goes = next(iter(switch.victims), call.model) if switch.phase in (Phase.DRAIN, Phase.UNLOAD) else call.model
    return m.Progress(_PHASES[switch.phase], call.name, goes, fraction, queued)


def resident_row(state: State, residents: Residents, model: Model) -> m.ResidentRow:
    """A model that holds memory."""
    held = model.held_bytes or None
    away = away_reason(state, model)
    return m.ResidentRow(
        name=model.name,
        state=model.status.value,
        size_bytes=held,
        planned_bytes=model.planned_bytes,
        ctx=model.given_ctx,
        device=residents.device(model.worker) if model.worker is not None else "cpu",
        until_ms=None if model.expires_at is None else _ms(model.expires_at - time.monotonic()),
        age_ms=_ms(time.monotonic() - model.since),
        active=state.active == model.name,
        pid=residents.pid(model.worker) if model.worker is not None else None,
        running=sum(r.ticket.model == model.name for r in state.running.values()),
        waiting=sum(t.model == model.name for t in state.waiting),
        reason=model.leaving or away,
        pinned=model.pinned,
        kv_type=model.terms.kv_type,
        limit_bytes=residents.limit_bytes(model.worker) if model.worker is not None else None,
        degraded=list(model.terms.less),
        available=not away,
    )


def worker_row(state: State, residents: Residents, model: Model) -> m.WorkerRow:
    """What a model's worker holds, against what it may."""
    row = resident_row(state, residents, model)
    return m.WorkerRow(
        model=model.name,
        state=row.state,
        held_bytes=model.held_bytes,
        planned_bytes=model.planned_bytes,
        limit_bytes=row.limit_bytes,
        running=row.running,
        waiting=row.waiting,
        tokens_per_s=round(residents.tokens_per_s(model.worker), 1) if model.worker is not None else 0.0,
    )


def layers(limits: budget.Limits, state: State, working_bytes: int) -> list[m.MemoryLayer]:
    """The ledger."""
    return [
        m.MemoryLayer(
            layer.name,
            layer.limit_bytes,
            layer.reserved_bytes,
            layer.committed_bytes,
            layer.free_bytes,
            layer.over_bytes,
        )
        for layer in budget.ledger(limits, state, working_bytes)
    ]


def ps(state: State, residents: Residents, calls: Calls) -> m.Ps:
    """Who holds memory, and what is in flight besides watchers."""
    rows = [resident_row(state, residents, x) for x in state.models.values() if x.status in HOLDING]
    requests = [
        request_row(state, call) for call in calls if not call.op.startswith(("events.", "daemon.", "model.ps"))
    ]
    return m.Ps(rows, requests)


def request_row(state: State, call: Call) -> m.RequestRow:
    """A request in flight."""
    running = call.number in state.running
    return m.RequestRow(
        request=call.name,
        op=call.op,
        state="running" if running else call.progress.phase if call.progress else "queued",
        model=call.model,
        age_ms=_ms(time.monotonic() - call.arrived),
        tokens=call.text.tokens_seen if call.text is not None else 0,
        uid=call.client.uid,
        pid=call.client.pid,
        priority=call.priority,
    )


def switch_view(state: State) -> m.SwitchView | None:
    """The switch under way."""
    switch = state.switch
    if switch is None:
        return None
    age = _ms(time.monotonic() - switch.began)
    return m.SwitchView(switch.target, switch.phase.value, list(switch.victims), age)


def model_row(state: State, manifest: Manifest, model: Model) -> m.ModelRow:
    """A registered model."""
    facts = manifest.facts
    away = away_reason(state, model)
    return m.ModelRow(
        name=model.name,
        type=manifest.backend if manifest.remote else "local",
        state=model.status.value,
        path=manifest.path,
        size_bytes=facts.file_bytes,
        architecture=facts.architecture,
        quantization=facts.quantization,
        parameters=facts.parameters,
        context_length=facts.context_length,
        available=not away,
        reason=away or (model.reason if model.status is Status.FAILED else ""),
    )


def away_reason(state: State, model: Model) -> str:
    """Why a model's server is not asked; empty while it is."""
    breaker = state.breakers.get(model.server)
    if breaker is None or breaker.retry_at is None:
        return ""
    return f"its {server_away(server_row(model.server, breaker))}"


def server_away(row: m.ServerRow) -> str:
    """A server that is not asked, in words."""
    when = "just now" if row.breaker == "half-open" else f"in {(row.retry_after_ms or 0) / 1000:.1f} s"
    return f"server {row.name} is away and asked again {when}: {row.reason}"


def server_row(name: str, breaker: Breaker) -> m.ServerRow:
    """What speaks against a server."""
    now = time.monotonic()
    return m.ServerRow(
        name=name,
        breaker=breakers.position(breaker, now),
        failures=len(breaker.failures),
        reason=breaker.reason,
        retry_after_ms=None if breaker.retry_at is None else _ms(breakers.retry_s(breaker, now)),
    )


def missing_row(name: str, path: str, fault: Fault, kind: str = "local") -> m.ModelRow:
    """A model that the configuration names and that cannot be used, or all those of a server."""
    return m.ModelRow(
        name=name,
        type=kind,
        state="missing",
        path=path,
        size_bytes=0,
        architecture="",
        quantization="",
        parameters=0,
        context_length=0,
        available=False,
        reason=shown(fault.message, 300),
        code=fault.code,
    )


def explain(state: State, model: Model) -> m.Explain:
    """The story of a model."""
    now = time.monotonic()
    breaker = state.breakers.get(model.server)
    story = [m.StoryLine(_wall_ms(e.at), e.was.value, e.now.value, e.why, e.detail) for e in model.story]
    waits = model.status is Status.FAILED and model.retry_at > now
    return m.Explain(
        model=model.name,
        state=model.status.value,
        reason=model.reason,
        story=story,
        failures=len(model.failures),
        retry_after_ms=_ms(model.retry_at - now) if waits else None,
        server=None if breaker is None else server_row(model.server, breaker),
    )


def plan(state: State, model: Model, ask: m.PlanAsk) -> m.Plan:
    """What a load would take, and what admission would make of it now."""
    slots = ask.slots or state.rules.slots
    ctx, kv_type = ask.ctx or 0, ask.kv_type or ""
    planned = plan_of(model, ctx, kv_type, slots)
    learned = learned_bytes(model, planned, kv_type, slots)
    state = dataclasses.replace(state, rules=dataclasses.replace(state.rules, slots=slots))
    ticket = Ticket(0, 0, Want.RESIDENT, model.name, 0.0, ctx=ctx, kv_type=kv_type)
    exact = offer_for(state, model, dataclasses.replace(ticket, exact=True))
    fits = isinstance(exact, Terms) and (bool(exact.draft) or not has_draft(model))
    given = exact if isinstance(exact, Terms) else offer_for(state, model, ticket)
    return m.Plan(
        model=model.name,
        ctx=planned.ctx,
        parts=[m.PlanPart(name, size) for name, size in planned.parts],
        total_bytes=planned.total_bytes + learned,
        limit_bytes=state.limit_bytes,
        fits=fits,
        unloads=[] if isinstance(given, Fault) else _unloads(state, model, given),
        reason=exact.undrafted if isinstance(exact, Terms) else exact.message,
        slots=slots,
        kv_type=kv_type or model.traits.kv_type,
        learned_bytes=learned,
        free_bytes=max(0, budget.free(state, {model.name})),
        instead=m.Offer(model.name, given.ctx, given.kv_type, given.planned_bytes)
        if isinstance(given, Terms) and not fits
        else None,
    )


def _unloads(state: State, model: Model, terms: Terms) -> list[str]:
    """The other models that would have to go."""
    victims = evict.victims(state, model.name, terms.planned_bytes, state.limit_bytes, time.monotonic())
    return [name for name in victims or () if name != model.name]
