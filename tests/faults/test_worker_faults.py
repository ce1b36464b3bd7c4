"""Workers that die, hang, refuse to go, or cannot be had: what their clients hear, how soon, and what comes next."""

import contextlib
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from h2qctl import Client, H2qError
from tests.harness import DaemonProcess, alive, await_true, background, code_of, running

AT_ONCE_S = 0.5
IMPATIENT = "worker: {stall_timeout: 400ms, ping_interval: 50ms, stop_grace: 200ms, cancel_grace: 300ms}"

MODELS: dict[str, dict[str, object]] = {
    "a": {"tokens": 3000, "token_ms": 3},
    "b": {"tokens": 4},
    "hangs": {"hang_at_token": 3, "token_ms": 1},
    "wedges": {"wedge_at_token": 3, "token_ms": 1},
    "crashes": {"crash_at_token": 3, "token_ms": 1},
    "stubborn": {"tokens": 3000, "token_ms": 3, "ignore_stop": True, "ignore_sigterm": True},
    "deaf": {"tokens": 3000, "token_ms": 3, "ignore_cancel": True},
    "load-crash": {"load_crash_at": 0.5, "load_ms": 100},
    "load-hang": {"load_hang": True},
    "odd-exit": {"tokens": 4, "exit_code": 3},
    "thrifty": {"tokens": 4, "save_ms": 500},
    "slow-disk": {"tokens": 4, "save_ms": 60_000},
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    extra = f"{IMPATIENT}\nfailures: {{backoff_first: 10ms, backoff_max: 50ms}}\nresidency: {{patience: 0s}}"
    extra += "\nsessions: {save_timeout: 2s}"
    with running(tmp_path_factory.mktemp("daemon"), MODELS, extra) as process:
        yield process


@pytest.fixture
def client(daemon: DaemonProcess) -> Iterator[Client]:
    with Client(str(daemon.socket)) as client:
        yield client
        if client.status().active is not None:
            client.unload(force=True)
        await_true(lambda: client.ps().models == [], "nothing holds memory")


def test_a_killed_worker_is_told_at_once_and_loaded_anew(daemon: DaemonProcess, client: Client) -> None:
    stream = daemon.client().stream("x", "a", max_tokens=3000)
    next(stream)
    waits = background(lambda: daemon.client().infer("x", "a", max_tokens=2))
    other = background(lambda: daemon.client().load("b"))
    await_true(lambda: client.status().waiting == 2, "two others wait")
    pid = daemon.worker_pid("a")
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(H2qError) as raised:
        list(stream)
    assert time.monotonic() - began < AT_ONCE_S
    assert raised.value.code == "worker_crashed"
    assert "SIGKILL" in raised.value.args[0]
    assert waits.result(10).usage.completion_tokens == 2
    assert other.result(10).model == "b"
    assert client.infer("x", "a", max_tokens=2).finish == "length"
    assert daemon.worker_pid("a") != pid


def test_who_saves_sessions_is_waited_for_but_not_for_ever(daemon: DaemonProcess, client: Client) -> None:
    client.load("thrifty")
    assert client.switch("b").unloaded[0].ms > 500
    assert [line["saved"] for line in daemon.log("sessions.saved")] == [1]
    client.load("slow-disk")
    assert client.switch("b").unloaded[0].ms > 2000
    escalated = [line["model"] for line in daemon.log("worker.stop_escalates")]
    assert ("thrifty" in escalated, "slow-disk" in escalated) == (False, True)
    assert len(daemon.log("sessions.saved")) == 1


def test_an_idle_worker_that_dies_is_noticed_and_loaded_anew(daemon: DaemonProcess, client: Client) -> None:
    client.load("b")
    os.kill(daemon.worker_pid("b"), signal.SIGSEGV)
    await_true(lambda: client.ps().models == [], "it is cold")
    assert client.status().active == "b"
    assert client.infer("x").model == "b"


def test_a_crash_of_its_own_is_told_with_its_signal(client: Client) -> None:
    with pytest.raises(H2qError, match="SIGSEGV") as raised:
        client.infer("x", "crashes")
    assert raised.value.code == "worker_crashed"


def test_a_library_of_another_cpu_is_told_with_what_to_do(daemon: DaemonProcess, client: Client) -> None:
    runs = background(lambda: daemon.client().infer("x", "a", max_tokens=3000))
    await_true(lambda: client.status().running == 1, "it runs")
    os.kill(daemon.worker_pid("a"), signal.SIGILL)
    with pytest.raises(H2qError, match="SIGILL") as raised:
        runs.result(20)
    assert raised.value.because == ("its engine's library was built for another CPU",)
    assert "--no-binary" in (raised.value.hint)


@pytest.mark.parametrize("model", ["hangs", "wedges"])
def test_an_engine_that_stops_moving_is_killed(client: Client, model: str) -> None:
    began = time.monotonic()
    assert code_of(background(lambda: client.infer("x", model))) == "worker_hung"
    assert 0.4 <= time.monotonic() - began < 2


def test_a_stopped_process_is_as_good_as_hung(daemon: DaemonProcess, client: Client) -> None:
    runs = background(lambda: daemon.client().infer("x", "a", max_tokens=3000))
    await_true(lambda: client.status().running == 1, "it runs")
    pid = daemon.worker_pid("a")
    os.kill(pid, signal.SIGSTOP)
    assert code_of(runs) == "worker_hung"
    await_true(lambda: not alive(pid), "it was killed though it was stopped")
    client.load("a", reset=True)
    assert client.infer("x", "a", max_tokens=1).finish == "length"


def test_a_worker_that_will_not_go_is_made_to(daemon: DaemonProcess, client: Client) -> None:
    client.load("stubborn")
    pid = daemon.worker_pid("stubborn")
    began = time.monotonic()
    assert client.switch("b").unloaded[0].model == "stubborn"
    assert 0.4 <= time.monotonic() - began < 2
    assert not alive(pid)
    rungs = [line["rung"] for line in daemon.log("worker.stop_escalates") if line["model"] == "stubborn"]
    assert rungs == [2, 3]


def test_a_worker_that_does_not_let_go_of_a_request_is_killed(daemon: DaemonProcess, client: Client) -> None:
    stream = daemon.client().stream("x", "deaf", max_tokens=3000)
    next(stream)
    waits = background(lambda: daemon.client().infer("x", "deaf", max_tokens=1))
    await_true(lambda: client.status().waiting == 1, "another waits")
    (running_row,) = [row for row in client.ps().requests if row.state == "running"]
    client.cancel(running_row.request)
    with pytest.raises(H2qError) as raised:
        list(stream)
    assert raised.value.code == "cancelled"
    assert waits.result(10).finish == "length"


def test_an_unload_that_ends_oddly_is_an_unload(client: Client) -> None:
    client.load("odd-exit")
    assert client.unload("odd-exit").changed


@pytest.mark.parametrize(("model", "code"), [("load-crash", "worker_crashed"), ("load-hang", "worker_hung")])
def test_a_load_that_fails_is_rolled_back_with_the_story(client: Client, model: str, code: str) -> None:
    client.load("b")
    with pytest.raises(H2qError) as raised:
        client.switch(model)
    assert raised.value.code == code
    assert any("b is resident again" in because for because in raised.value.because)
    assert client.infer("x").model == "b"
    assert client.explain(model).state == "failed"


def test_a_load_has_its_time(tmp_path: Path) -> None:
    extra = "worker: {load_timeout: 2s, stop_grace: 200ms}"
    with running(tmp_path, {"slow": {"load_ms": 20_000}, "b": {}}, extra) as daemon:
        client = daemon.client()
        client.load("b")
        with pytest.raises(H2qError, match=r"did not finish loading within 2 s") as raised:
            client.switch("slow")
        assert raised.value.code == "worker_hung"
        assert client.status().active == "b"


def test_five_crashes_open_the_breaker_and_a_reset_closes_it(tmp_path: Path) -> None:
    extra = "failures: {backoff_first: 10ms, backoff_max: 20s}"
    with running(tmp_path, {"crashes": {"crash_at_token": 1}}, extra) as daemon:
        client = daemon.client()

        def crash() -> str:
            with pytest.raises(H2qError) as raised:
                client.infer("x", "crashes")
            if raised.value.code == "model_failed":
                assert raised.value.retry_after_ms is not None
            return raised.value.code

        codes: list[str] = []
        while codes.count("worker_crashed") < 5:
            codes.append(crash())
        assert crash() == "model_failed"
        assert code_of(background(lambda: client.load("crashes"))) == "model_failed"
        story = client.explain("crashes")
        assert (story.failures, story.state) == (5, "failed")
        assert client.load("crashes", reset=True).changed
        assert client.explain("crashes").failures == 0


def test_a_killed_zygote_takes_its_workers_along_and_is_replaced(tmp_path: Path) -> None:
    with running(tmp_path, MODELS) as daemon:
        client = daemon.client()
        runs = background(lambda: daemon.client().infer("x", "a", max_tokens=3000))
        await_true(lambda: client.status().running == 1, "it runs")
        zygote, worker = daemon.zygote_pid(), daemon.worker_pid("a")
        os.kill(zygote, signal.SIGKILL)
        assert code_of(runs) == "worker_crashed"
        await_true(lambda: not alive(worker), "the worker went with it")
        assert client.infer("x", "a", max_tokens=1).finish == "length"
        assert daemon.zygote_pid() != zygote


def test_a_zygote_that_does_nothing_is_replaced(tmp_path: Path) -> None:
    extra = "worker: {start_timeout: 4s, stop_grace: 200ms}"
    with running(tmp_path, {"a": {}}, extra) as daemon:
        client = daemon.client()
        client.load("a")
        client.unload("a")
        zygote = daemon.zygote_pid()
        os.kill(zygote, signal.SIGSTOP)
        began = time.monotonic()
        assert code_of(background(lambda: client.load("a"))) == "worker_hung"
        assert time.monotonic() - began < 8
        assert not alive(zygote)
        assert client.load("a", reset=True, timeout=20).changed
        # A death that it does not report, too.
        zygote, worker = daemon.zygote_pid(), daemon.worker_pid("a")
        os.kill(zygote, signal.SIGSTOP)
        os.kill(worker, signal.SIGKILL)
        assert code_of(background(lambda: client.infer("x", "a"))) in ("worker_hung", "worker_crashed")
        assert not alive(zygote)
        assert client.infer("x", "a").finish == "stop"


def test_a_crowd_of_crashes_costs_nobody_else(daemon: DaemonProcess, client: Client) -> None:
    for _ in range(5):
        with contextlib.suppress(H2qError):
            client.infer("x", "crashes")
        assert client.infer("x", "b").finish == "stop"
    assert daemon.process.poll() is None


def test_without_descriptors_a_load_fails_and_the_next_one_works(tmp_path: Path) -> None:
    with running(tmp_path, {"a": {"tokens": 4}, "b": {}}) as daemon:
        client = daemon.client()
        client.load("a")
        before = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (3, before[1]))
        with pytest.raises(H2qError, match="Too many open files") as raised:
            client.switch("b")
        assert raised.value.code == "load_failed"
        assert len(daemon.log("worker.not_started")) == 2  # the rollback met the same
        assert client.status().phase == "serving"
        zygote = daemon.zygote_pid()
        os.kill(zygote, signal.SIGKILL)
        await_true(lambda: bool(daemon.log("zygote.died")), "its death is noticed")
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, before)
        assert client.load("a", reset=True).changed
        assert client.infer("x").finish == "stop"
