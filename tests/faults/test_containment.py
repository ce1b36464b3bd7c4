"""A worker that outgrows its plan dies alone: real daemons, real memory, the real kernel's verdict.

The plan of a scripted model is what its `facts` say, and a worker's process: so a script can take more than its plan.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from h2qctl import Client, H2qError
from h2qd.runtime import cgroups
from h2qd.runtime.containment import MARGIN_BYTES_MIN
from tests.harness import DaemonProcess, alive, await_true, background, launch, running

MIB = 2**20
LEAK = {"tokens": 10_000, "token_ms": 2, "leak_bytes_per_token": 4 * MIB}


@pytest.fixture(autouse=True, scope="module")
def _containing(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running(tmp_path_factory.mktemp("doctor")) as daemon:
        found = next(check for check in daemon.client().doctor().checks if check.name == "cgroup")
    if found.verdict != "ok":
        pytest.skip(found.detail)


def homes() -> Iterator[Path]:
    """The homes of all daemons in this test's own group, on v1 and v2."""
    for dialect in (cgroups.V1, cgroups.V2):
        own = cgroups._own_group(Path("/"), dialect.mount)
        if own is not None:
            yield from own.glob("h2qd-*")


def home(pid: int) -> Path:
    return next(folder for folder in homes() if folder.name == f"h2qd-{pid}")


def workers(daemon: DaemonProcess) -> list[Path]:
    return sorted(home(daemon.process.pid).glob("worker-*"))


def limit(group: Path) -> int:
    file = next(file for name in ("memory.max", "memory.limit_in_bytes") if (file := group / name).exists())
    return int(file.read_text())


def test_a_leak_ends_its_own_worker_in_mid_stream(tmp_path: Path) -> None:
    with running(tmp_path, {"leak": LEAK, "tame": {"tokens": 3}}) as daemon:
        client = daemon.client()
        client.load("leak")
        before = client.status()
        zygote = next(p for p in daemon.tree() if p.ppid() == daemon.process.pid)
        pieces: list[str] = []
        errors: list[H2qError] = []

        def consume() -> None:
            try:
                with Client(str(daemon.socket)) as own:
                    pieces.extend(own.stream("hello", "leak"))
            except H2qError as error:
                errors.append(error)

        stream = threading.Thread(target=consume)
        stream.start()
        slowest_s = 0.0
        while stream.is_alive():
            began = time.monotonic()
            client.status()
            slowest_s = max(slowest_s, time.monotonic() - began)
        stream.join()
        after = client.status()

        (error,) = errors
        assert len(pieces) > 5
        assert error.code == "worker_oom"
        assert error.message.startswith("cannot go on: the process of leak needed more than its limit of 0.0")
        assert "(plan 0.0" in error.message
        assert "peak 0.0" in error.message
        assert error.retryable
        assert slowest_s < 1
        assert (after.pid, after.running, after.resident) == (before.pid, 0, [])
        assert after.memory.supervisor_bytes - before.memory.supervisor_bytes < 4 * MIB
        assert zygote.is_running()
        assert client.explain("leak").failures == 1
        assert workers(daemon) == [], "the group goes with its worker"

        assert client.infer("hello", "leak", max_tokens=2).text, "one crash costs nothing: it is loaded anew"
        assert client.infer("hello", "tame").text
        pid = daemon.process.pid
    assert not [folder for folder in homes() if folder.name == f"h2qd-{pid}"]


def test_a_load_that_outgrows_its_plan_fails_and_is_rolled_back(tmp_path: Path) -> None:
    with running(tmp_path, {"big": {"memory_bytes": 400 * MIB}, "small": {"tokens": 3}}) as daemon:
        client = daemon.client()
        client.load("small")
        with pytest.raises(H2qError) as caught:
            client.switch("big")
        assert caught.value.code == "worker_oom"
        assert client.status().resident == ["small"]
        assert client.infer("hello").text


def test_within_its_plan_the_same_memory_is_its_own(tmp_path: Path) -> None:
    facts = {"format": "fake", "architecture": "fake", "context_length": 4096, "tensor_bytes": 400 * MIB}
    with running(tmp_path, {"big": {"memory_bytes": 400 * MIB, "facts": facts}}) as daemon:
        assert daemon.client().load("big").memory_bytes > 380 * MIB


def test_a_worker_is_inside_before_it_loads(tmp_path: Path) -> None:
    slow = {"load_ms": 60_000}
    with running(tmp_path, {"slow": slow}, "worker: {memory_margin: 200MiB}") as daemon:
        client = daemon.client()

        def load() -> None:
            with Client(str(daemon.socket)) as own, contextlib.suppress(H2qError):
                own.load("slow")

        loading = threading.Thread(target=load, daemon=True)
        loading.start()
        await_true(lambda: any(row.pid for row in client.ps().models), "it is forked")
        pid = daemon.worker_pid("slow")
        (group,) = workers(daemon)
        assert (group / "cgroup.procs").read_text().split() == [str(pid)]
        assert limit(group) == client.plan("slow").total_bytes + 200 * MIB
        client.unload("slow")
        loading.join()


def test_a_margin_below_the_least_is_the_least(tmp_path: Path) -> None:
    with running(tmp_path, {"a": {}}, "worker: {memory_margin: 1%}") as daemon:
        client = daemon.client()
        client.load("a")
        (group,) = workers(daemon)
        page = os.sysconf("SC_PAGE_SIZE")
        assert limit(group) == (client.plan("a").total_bytes + MARGIN_BYTES_MIN) // page * page


def test_a_worker_killed_by_hand_did_not_run_out_of_memory(tmp_path: Path) -> None:
    with running(tmp_path, {"a": {"tokens": 1000, "token_ms": 20}}) as daemon:
        client = daemon.client()
        client.load("a")
        stream = iter(client.stream("hello", "a"))
        next(stream)
        os.kill(daemon.worker_pid("a"), signal.SIGKILL)
        with pytest.raises(H2qError) as caught:
            list(stream)
        assert caught.value.code == "worker_crashed"


def test_a_killed_daemon_leaves_nothing_once_the_next_has_started(tmp_path: Path) -> None:
    with running(tmp_path, {"a": {}}) as daemon:
        daemon.client().load("a")
        worker = daemon.worker_pid("a")
        abandoned = home(daemon.process.pid)
        daemon.kill()
        await_true(lambda: not alive(worker), "the worker follows")
        assert abandoned.exists()
        daemon.socket.unlink()
        (tmp_path / "next").mkdir()
        following = launch(tmp_path / "next", daemon.config)
        try:
            assert not abandoned.exists()
        finally:
            assert following.stop() == 0
            following.notify.close()


def test_a_neighbour_is_left_alone(tmp_path: Path) -> None:
    with running(tmp_path / "one", {"a": {"tokens": 4000, "token_ms": 1}}) as one:
        stream = iter(one.client().stream("hello", "a"))
        next(stream)
        mine = workers(one)
        with running(tmp_path / "two", {"leak": LEAK}) as two:
            with pytest.raises(H2qError) as caught:
                two.client().infer("hello", "leak")
            assert caught.value.code == "worker_oom"
            assert workers(one) == mine
        assert workers(one) == mine
        assert len(list(stream)) > 1


def test_a_leak_beside_another_stream(tmp_path: Path) -> None:
    """Two models at once: the one that outgrows its limit dies, and the other's answer goes on without a gap."""
    tame = {"tokens": 800, "token_ms": 5}
    policy = "residency: {policy: budget}\nmemory: {model_limit: 512MiB, safety_buffer: 0}"
    with running(tmp_path, {"leak": LEAK, "tame": tame}, policy) as daemon:
        client = daemon.client()
        client.load("tame")
        client.load("leak")
        tame_pid = daemon.worker_pid("tame")
        arrivals: list[tuple[float, str]] = []

        def consume() -> str:
            with Client(str(daemon.socket)) as own:
                stream = own.stream("hello", "tame", max_tokens=2000)
                arrivals.extend((time.monotonic(), piece) for piece in stream)
                assert stream.answer is not None
                return stream.answer.finish

        answered = background(consume)
        await_true(lambda: len(arrivals) > 20, "the other one answers")
        supervisor_bytes = daemon.rss_bytes()
        with pytest.raises(H2qError) as caught:
            client.infer("hello", "leak", max_tokens=10_000)
        died = time.monotonic()
        assert caught.value.code == "worker_oom"
        assert not answered.done(), "it goes on"
        assert client.status().resident == ["tame"]
        assert client.infer("hello", "leak", max_tokens=2).finish == "length", "it is loaded anew beside the other"
        assert not answered.done()
        assert answered.result(30) == "stop"
        assert daemon.worker_pid("tame") == tame_pid
        assert "".join(text for _, text in arrivals) == "".join(f"tok{n} " for n in range(800))
        assert arrivals[-1][0] > died
        gaps = [after - before for (before, _), (after, _) in pairwise(arrivals)]
        grown = daemon.rss_bytes() - supervisor_bytes
        print(f"daemon {grown:+} bytes; longest gap between pieces {max(gaps) * 1000:.0f} ms")
        assert abs(grown) < 2 * MIB
        assert max(gaps) < 1
