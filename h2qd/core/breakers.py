"""Breakers, one a server: whether models that it runs are asked at all, or left alone because it is away.

    closed --(a load or a look finds nobody, or `FAILURES_MAX` requests in a row fail)--> open --(the wait is over)-->
    half-open: one cheap call, a look at what it has --(it answers)--> closed, --(it does not)--> open, for longer

While it is not closed, requests for any of its models are refused at once with `remote_unreachable` and the time to
wait; who runs already goes on, and closes it by succeeding. What a server refuses (4xx) says nothing against it.
Fed by `machine`, read by `admission` and `outcome`. Invariant: an open breaker has asked for a look (`AskServer`).
"""

from dataclasses import replace
from typing import Literal

from h2qd.core.effects import AskServer, Publish
from h2qd.core.records import Breaker, Fault, Model, Rules, State
from h2qd.core.states import Move, Status
from h2qd.core.turn import Turn

FAILURES_MAX = 3
"""Requests in a row that may fail, within the breaker's window, until it opens: a single one may be bad luck."""

LOOK_S = 1.0
"""What a look takes, about: for who asks meanwhile."""


def request_ended(turn: Turn, server: str, fault: Fault | None) -> None:
    """A request was answered, or failed."""
    if fault is None:
        close(turn, server)
    elif fault.away:
        _count(turn, server, fault)


def load_ended(turn: Turn, server: str, fault: Fault | None) -> None:
    """A load succeeded or failed. Its worker had tried for a while: nobody there for it is nobody for the others."""
    if fault is None:
        close(turn, server)
    elif is_nobody(fault):
        _open(turn, server, fault)
    elif fault.away:
        _count(turn, server, fault)


def looked(turn: Turn, server: str, fault: Fault | None) -> None:
    """A look is done. Whatever a server that answers refuses, its requests are to hear of themselves."""
    if fault is None or not fault.away:
        close(turn, server)
    else:
        _open(turn, server, fault, again=True)


def close(turn: Turn, server: str) -> None:
    """Nothing speaks against a server any more, nor against models it was away for: it answered, or it is to."""
    breaker = turn.state.breakers.get(server)
    if breaker is None:
        return
    rest = {name: each for name, each in turn.state.breakers.items() if name != server}
    turn.state = replace(turn.state, breakers=rest)
    for model in list(turn.state.models.values()):
        if model.server == server and model.status is Status.FAILED and not model.failures:
            turn.move(model.name, Move.RESET, f"{server} answers again", reason="")
    if breaker.retry_at is not None:
        turn.emit(Publish("server", "server.back", None, {"server": server, "away_s": turn.now - breaker.since}))


def away(state: State, model: Model, now: float) -> Fault | None:
    """Why a model is not asked now: its server is away. None where it is there, or there is none."""
    breaker = state.breakers.get(model.server)
    wait_s = patience_s(state, model.server, now)
    if breaker is None or wait_s is None:
        return None
    when = f"in {wait_s:.1f} s" if position(breaker, now) == "open" else "just now"
    return Fault(
        "remote_unreachable",
        f"cannot use {model.name}: its server {model.server} is away, and asked again {when}",
        (f"last failure: {breaker.reason}",),
        retry_after_s=wait_s,
        fix=f"see that {model.server} runs; h2qctl load {model.name} --reset asks it at once",
    )


def position(breaker: Breaker, now: float) -> Literal["closed", "open", "half-open"]:
    """Where a breaker stands."""
    if breaker.retry_at is None:
        return "closed"
    return "open" if now < breaker.retry_at else "half-open"


def retry_s(breaker: Breaker, now: float) -> float:
    """How long it is until a server is looked at again."""
    return 0.0 if breaker.retry_at is None else max(0.0, breaker.retry_at - now)


def patience_s(state: State, server: str, now: float) -> float | None:
    """After how long it is worth asking a server again that is away; None for one that is not."""
    breaker = state.breakers.get(server)
    if breaker is None or breaker.retry_at is None:
        return None
    return retry_s(breaker, now) or LOOK_S


def is_nobody(fault: Fault) -> bool:
    """Whether nobody was there to answer; else somebody was, and failed."""
    return fault.away and fault.code == "remote_unreachable"


def _count(turn: Turn, server: str, fault: Fault) -> None:
    breaker = turn.state.breakers.get(server, Breaker())
    recent = (at for at in breaker.failures if turn.now - at < turn.state.rules.breaker_window_s)
    breaker = replace(breaker, failures=(*recent, turn.now)[-FAILURES_MAX:], reason=fault.message)
    turn.state = replace(turn.state, breakers={**turn.state.breakers, server: breaker})
    if len(breaker.failures) == FAILURES_MAX:
        _open(turn, server, fault)


def _open(turn: Turn, server: str, fault: Fault, *, again: bool = False) -> None:
    """Leave a server alone, longer after each look at it (`again`) that was in vain. Who else fails is no news."""
    breaker = turn.state.breakers.get(server, Breaker())
    was_open = breaker.retry_at is not None
    if was_open and not again:
        return
    looks = breaker.looks + 1
    at = turn.now + _wait_s(looks, turn.state.rules)
    since = breaker.since if was_open else turn.now
    opened = replace(breaker, looks=looks, retry_at=at, since=since, reason=fault.message)
    turn.state = replace(turn.state, breakers={**turn.state.breakers, server: opened})
    turn.emit(AskServer(server, at))
    if not was_open:
        turn.emit(Publish("server", "server.away", None, {"server": server, "reason": fault.message}))


def _wait_s(looks: int, rules: Rules) -> float:
    doublings = min(looks - 1, 32)  # it may be away for weeks
    return min(rules.backoff_first_s * 2.0**doublings, rules.backoff_max_s)
