"""A breaker for each server: what opens it, who is refused meanwhile, and what closes it."""

from dataclasses import replace

import pytest

from h2qd.core import breakers
from h2qd.core.records import Fault, Rules
from h2qd.core.states import Status
from tests.playbook import (
    CRASH,
    LOAD_FAILED,
    Playbook,
    answered,
    asked,
    asks,
    cancel,
    complete,
    dies,
    gone,
    grant,
    halt,
    infer,
    load,
    notice,
    ready,
    refuse,
    registered,
    remember,
    resident,
    start,
    stop,
    unload,
)

NOBODY = Fault("remote_unreachable", "cannot connect to box: Connection refused", away=True)
BROKEN = Fault("generation_failed", "the server answered 500: it is broken", away=True)
REFUSED = Fault("remote_failed", "the server answered 404: no such model")


def playbook(**rules: float) -> Playbook:
    """Two models of a server, one of another, one of this device."""
    return (
        Playbook("own", rules=Rules(**rules))  # type: ignore[arg-type]
        .when(registered("a", server="box"))
        .when(registered("b", server="box"))
        .when(registered("c", server="lab"))
    )


def serving() -> Playbook:
    return playbook().given_ready("a")


def away() -> Playbook:
    """The server was found away by a load of one of its models."""
    return (
        playbook()
        .when(load(1, "a"))
        .then(start("a"))
        .when(dies("a", NOBODY))
        .then(asks("box", 1000.5), refuse(1, "remote_unreachable", message=NOBODY.message))
    )


def position(script: Playbook, server: str = "box") -> str:
    breaker = script.state.breakers.get(server)
    return "closed" if breaker is None else breakers.position(breaker, script.now)


def test_a_load_that_finds_nobody_speaks_for_all_models_of_the_server() -> None:
    script = away().states(a=Status.FAILED)
    assert position(script) == "open"
    (
        script.when(infer(2, "b"))
        .then(
            refuse(
                2,
                "remote_unreachable",
                message="cannot use b: its server box is away, and asked again in 0.5 s",
                because=(f"last failure: {NOBODY.message}",),
                retry_after_s=0.5,
            )
        )
        .when(load(3, "a"))
        .then(refuse(3, "remote_unreachable"))
        .when(infer(4, "c"))
        .then(start("c"))
    )


def test_a_look_that_succeeds_closes_it_and_clears_the_model() -> None:
    script = away().later(0.6)
    assert position(script) == "half-open"
    (
        script.when(infer(2, "b"))
        .then(refuse(2, "remote_unreachable", retry_after_s=breakers.LOOK_S))
        .when(asked("box"))
        .then()
        .notices(notice("model.moved", "a"), notice("server.back"))
        .states(a=Status.COLD)
        .when(infer(3, "a"))
        .then(start("a"))
    )
    assert position(script) == "closed"


def test_looks_in_vain_make_the_wait_longer_up_to_its_bound() -> None:
    script = away()
    waits = []
    for _ in range(12):
        at = script.state.breakers["box"].retry_at
        assert at is not None
        script.now = at
        before = script.now
        script.when(asked("box", NOBODY)).then(asks("box", script.state.breakers["box"].retry_at or 0.0))
        waits.append((script.state.breakers["box"].retry_at or 0.0) - before)
    assert waits[:6] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    assert waits[-1] == 30.0
    days = replace(script.state.breakers["box"], looks=100_000)
    script.state = replace(script.state, breakers={"box": days})
    script.when(asked("box", NOBODY)).then(asks("box", script.now + 30.0))
    script.when(asked("box")).then()
    assert not script.state.breakers


def test_a_look_at_a_server_that_refuses_it_closes_it() -> None:
    script = away().when(asked("box", REFUSED)).then()
    assert position(script) == "closed"


def test_a_look_that_finds_nobody_opens_it_before_anybody_asked() -> None:
    script = playbook().when(asked("box", NOBODY)).then(asks("box", 1000.5)).notices(notice("server.away"))
    script.when(infer(1, "a")).then(refuse(1, "remote_unreachable"))


def test_requests_in_a_row_open_it_and_whoever_waits_is_refused() -> None:
    script = serving().when(infer(1, "a")).then(grant(1, "a"))
    for request in (2, 3):
        script.when(infer(request, "a")).then()
        script.when(answered(request - 1, NOBODY)).then(
            refuse(request - 1, "remote_unreachable"), grant(request, "a")
        )
    script.when(infer(4, "a")).then().when(unload(5, "a")).then()
    (
        script.when(answered(3, BROKEN))
        .then(asks("box", 1000.5), refuse(3, "generation_failed"), refuse(4, "remote_unreachable"), stop("a"))
        .when(gone("a"))
    )


def test_a_request_that_succeeds_in_between_starts_the_count_anew() -> None:
    script = serving()
    for request in range(1, 9):
        good = request % breakers.FAILURES_MAX == 0
        script.when(infer(request, "a")).then(grant(request, "a"))
        script.when(answered(request, None if good else NOBODY)).then(
            complete(request) if good else refuse(request, "remote_unreachable")
        )
    assert position(script) == "closed"


def test_failures_long_ago_do_not_count() -> None:
    script = serving()
    for request in range(1, 9):
        script.when(infer(request, "a")).then(grant(request, "a"))
        script.when(answered(request, NOBODY)).then(refuse(request, "remote_unreachable")).later(31)
    assert position(script) == "closed"


@pytest.mark.parametrize("fault", [REFUSED, CRASH])
def test_what_is_not_the_servers_fault_does_not_count(fault: Fault) -> None:
    script = serving()
    for request in range(1, 9):
        script.when(infer(request, "a")).then(grant(request, "a"))
        script.when(answered(request, fault)).then(refuse(request, fault.code))
    assert not script.state.breakers


def test_how_a_cancelled_request_ends_says_nothing() -> None:
    script = serving()
    for request in range(1, 5):
        script.when(infer(request, "a")).then(grant(request, "a"))
        script.when(cancel(request)).then(halt(request, "a"))
        script.when(answered(request, NOBODY)).then(refuse(request, "cancelled"))
    assert not script.state.breakers


def test_a_running_request_that_succeeds_closes_it() -> None:
    script = serving().when(infer(1, "a")).then(grant(1, "a"))
    script.when(asked("box", NOBODY)).then(asks("box", 1000.5))
    script.when(infer(2, "a")).then(refuse(2, "remote_unreachable"))
    script.when(answered(1)).then(complete(1))
    assert position(script) == "closed"
    script.when(infer(3, "a")).then(grant(3, "a"))


def test_failures_while_it_is_open_are_no_news() -> None:
    script = serving()
    for request in (1, 2):
        script.when(infer(request, "a")).then(grant(request, "a"))
        script.when(answered(request, NOBODY)).then(refuse(request, "remote_unreachable"))
    script.when(infer(3, "a")).then(grant(3, "a"))
    script.when(asked("box", NOBODY)).then(asks("box", 1000.5)).later(0.2)
    script.when(answered(3, NOBODY)).then(refuse(3, "remote_unreachable"))
    assert script.state.breakers["box"].retry_at == 1000.5


def test_loads_that_the_server_fails_count_against_the_model_too() -> None:
    script = playbook(backoff_first_s=0.1)
    for request in (1, 2):
        script.when(load(request, "a")).then(start("a"))
        script.when(dies("a", BROKEN)).then(refuse(request, "generation_failed")).later(5)
    assert len(script.state.models["a"].failures) == 2
    script.when(load(3, "a")).then(start("a"))
    script.when(dies("a", BROKEN)).then(asks("box", script.now + 0.1), refuse(3, "generation_failed"))
    script.when(asked("box")).then().states(a=Status.FAILED)


def test_a_load_that_its_server_refuses_says_nothing_against_the_server() -> None:
    script = playbook().when(load(1, "a")).then(start("a")).when(dies("a", REFUSED)).then(refuse(1, "remote_failed"))
    assert not script.state.breakers


def test_a_reset_asks_at_once() -> None:
    (
        away()
        .when(load(2, "a", reset=True))
        .then(start("a"))
        .when(ready("a"))
        .then(remember("a"), resident(2, "a", changed=True))
        .when(infer(3, "a"))
        .then(grant(3, "a"))
    )


def test_a_load_under_way_is_waited_for_while_it_is_open() -> None:
    script = playbook().when(infer(1, "a")).then(start("a"))
    script.when(asked("box", NOBODY)).then(asks("box", 1000.5))
    script.when(ready("a")).then(remember("a"), grant(1, "a"))
    assert position(script) == "closed"


def test_a_switch_to_it_that_has_not_begun_to_load_is_called_off() -> None:
    script = playbook().given_ready("own").when(infer(1, "own")).then(grant(1, "own"))
    script.when(infer(2, "a")).then()
    script.when(asked("box", NOBODY)).then(asks("box", 1000.5), refuse(2, "remote_unreachable"))
    assert script.state.switch is None
    script.when(answered(1)).then(complete(1)).states(own=Status.READY)


def test_no_rollback_to_a_model_whose_server_is_away() -> None:
    script = serving().when(load(1, "own")).then(stop("a")).when(gone("a")).then(start("own"))
    script.when(asked("box", NOBODY)).then(asks("box", 1000.5))
    script.when(dies("own", LOAD_FAILED)).then(refuse(1, "load_failed")).states(a=Status.COLD)


def test_a_resident_model_stays_and_may_be_unloaded_while_its_server_is_away() -> None:
    script = serving().when(asked("box", NOBODY)).then(asks("box", 1000.5)).states(a=Status.READY)
    script.when(load(1, "a")).then(resident(1, "a", changed=False))
    script.when(unload(2, "a")).then(stop("a"))
