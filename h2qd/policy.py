"""What the configuration means to the core and to the adapters: its words turned into theirs, and nothing decided.

Pure. Called by `daemon`, which hands the results around.
"""

from h2qd.config import Config
from h2qd.config.schema import Model
from h2qd.core.guard import Thresholds
from h2qd.core.records import Rules, Traits
from h2qd.runtime.workers import Patience


def rules(config: Config) -> Rules:
    """How the core is to decide."""
    failures, guard = config.failures, config.guard
    return Rules(
        exclusive=config.residency.policy == "exclusive",
        strict=config.memory.strict,
        park_s=config.residency.park_s,
        buffer_bytes=config.memory.safety_buffer_bytes,
        offload=config.memory.device == "auto",
        guard=Thresholds(guard.warn, guard.critical, guard.emergency, guard.leave_gap, guard.dwell_s, guard.calm_s),
        slots=config.model.slots,
        patience_s=config.residency.patience_s,
        queue_max=config.requests.queue_max,
        cancel_grace_s=config.worker.cancel_grace_s,
        backoff_first_s=failures.backoff_first_s,
        backoff_max_s=failures.backoff_max_s,
        breaker_count=failures.breaker_count,
        breaker_window_s=failures.breaker_window_s,
    )


def named(config: Config, name: str) -> Model | None:
    """What the configuration says of a model; of a server's also where it leaves out the tag that an Ollama adds."""
    own, without = config.models.get(name), config.models.get(name.removesuffix(":latest"))
    return own or (without if without is not None and not without.path else None)


def fallback(config: Config, name: str) -> tuple[str, ...]:
    """Who answers where a model cannot, in their order."""
    own = named(config, name)
    return own.fallback if own is not None else ()


def fallback_after_s(config: Config, name: str) -> float | None:
    """How long a model's answer may take to begin before who falls back for it is asked; None: for ever."""
    own = named(config, name)
    return own.fallback_after_s if own is not None else None


def traits(config: Config, name: str) -> Traits:
    """What the configuration says of a model; what it does not say is as for all models."""
    general, own = config.model, named(config, name)
    if own is None:
        return Traits(general.kv_type, general.degrade, general.min_ctx, ttl_s=general.ttl_s)
    return Traits(
        kv_type=own.kv_type or general.kv_type,
        degrade=general.degrade if own.degrade is None else own.degrade,
        min_ctx=own.min_ctx or general.min_ctx,
        variants=own.variants,
        priority=own.priority,
        ttl_s=general.ttl_s if own.ttl_s is None else own.ttl_s,
        draft=own.draft,
    )


def quantize(config: Config) -> dict[str, str]:
    """What weights are turned into, by model; only of those whose are."""
    return {name: model.quantize for name, model in config.models.items() if model.quantize != "none"}


def margin_bytes(config: Config, planned_bytes: int) -> int:
    """What a worker may take beyond its plan. A size counts in full, also one that is larger than the plan."""
    margin = config.worker.memory_margin
    return margin.size_bytes if margin.size_bytes is not None else margin.of(planned_bytes)


def patience(config: Config) -> Patience:
    """How long processes may take."""
    worker = config.worker
    return Patience(
        start_s=worker.start_timeout_s,
        load_s=worker.load_timeout_s,
        stall_s=worker.stall_timeout_s,
        stop_grace_s=worker.stop_grace_s,
        save_s=config.sessions.save_timeout_s,
        ping_s=worker.ping_interval_s,
        nice=worker.nice,
        oom_score_adj=worker.oom_score_adj,
    )


def stop_s_max(config: Config) -> float:
    """All that a stop may take: running requests, then each worker's sessions and the steps of stopping it."""
    worker = config.worker
    return config.shutdown.drain_s + worker.cancel_grace_s + config.sessions.save_timeout_s + 2 * worker.stop_grace_s
