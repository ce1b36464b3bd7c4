"""Back-off and breaker: how long a model that failed is left alone.

A first crash costs nothing: the next request loads again. Failures in a row wait `backoff_first_s`, doubling to
`backoff_max_s`; `breaker_count` of them within `breaker_window_s` open the breaker: then only a reset helps
before the wait is over. A model that was ready for `stable_s` starts with a clean slate. A load that found nobody
at its server says nothing against the model: that is for the server's own breaker (`breakers`).
"""

from h2qd.core import breakers
from h2qd.core.records import Fault, Model, Rules
from h2qd.core.states import Move, Status
from h2qd.core.turn import Turn


def record_failure(turn: Turn, model: Model, fault: Fault) -> Model:
    """Move a model out of LOADING, READY or DRAINING after `fault`, and set when it may be tried again."""
    rules = turn.state.rules
    was_ready = model.status is not Status.LOADING
    if breakers.is_nobody(fault):
        gone = {"worker": None, "held_bytes": 0, "planned_bytes": 0, "leaving": "", "reason": fault.message}
        return turn.move(model.name, Move.FAIL, fault.message, **gone)
    stable = was_ready and turn.now - model.loaded_at >= rules.stable_s
    recent = () if stable else _recent(model, turn.now, rules)
    failures = (*recent, turn.now)[-rules.breaker_count :]
    broken = len(failures) >= rules.breaker_count
    crashed_once = was_ready and len(failures) == 1 and not broken
    delay = 0.0 if crashed_once else _delay(len(failures), rules)
    if broken:
        delay = rules.backoff_max_s
    return turn.move(
        model.name,
        Move.GONE if crashed_once else Move.FAIL,
        fault.message,
        worker=None,
        held_bytes=0,
        planned_bytes=0,
        leaving="",
        failures=failures,
        retry_at=turn.now + delay,
        broken=broken,
        reason=fault.message,
    )


def forget_failures(turn: Turn, model: Model) -> None:
    """Give a model, and the server that runs it, a clean slate, because a person asked."""
    breakers.close(turn, model.server)
    model = turn.model(model.name)
    turn.change(model.name, failures=(), retry_at=0.0, broken=False, reason="")
    if model.status is Status.FAILED:
        turn.move(model.name, Move.RESET)


def held_back(model: Model, now: float, *, explicit: bool) -> Fault | None:
    """Why a failed model is not tried now, or None. An `explicit` load passes the back-off, not the breaker."""
    if model.status is not Status.FAILED or now >= model.retry_at or (explicit and not model.broken):
        return None
    wait = model.retry_at - now
    what = f"failed {len(model.failures)} times" if len(model.failures) > 1 else "failed lately"
    return Fault(
        "model_failed",
        f"cannot use {model.name}: it {what} and is left alone for {wait:.1f} s more",
        (f"last failure: {model.reason}",),
        retry_after_s=wait,
    )


def _recent(model: Model, now: float, rules: Rules) -> tuple[float, ...]:
    return tuple(at for at in model.failures if now - at < rules.breaker_window_s)


def _delay(count: int, rules: Rules) -> float:
    return min(rules.backoff_first_s * 2.0 ** (count - 1), rules.backoff_max_s)
