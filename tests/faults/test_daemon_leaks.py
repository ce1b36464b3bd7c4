"""What a daemon's work leaves behind, counted over hundreds of loads, answers, crashes and imports: nothing."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from h2qctl import Client, H2qError
from tests.harness import DaemonProcess, await_true, background, running, script

FLAT_BYTES = 2 * 2**20

MODELS: dict[str, dict[str, object]] = {
    "a": {"tokens": 3},
    "b": {"tokens": 3},
    "crashes": {"crash_at_token": 0},
    "long": {"tokens": 2000, "token_ms": 1},
}


def load_and_unload(client: Client, _: DaemonProcess) -> None:
    client.load("a")
    client.infer("x")
    client.unload("a")


def switch(client: Client, _: DaemonProcess) -> None:
    client.switch("a")
    client.switch("b")


def crash(client: Client, _: DaemonProcess) -> None:
    with contextlib.suppress(H2qError):
        client.infer("x", "crashes")
    client.load("crashes", reset=True)


def give_up(client: Client, daemon: DaemonProcess) -> None:
    waits = background(lambda: daemon.client().infer("x", "long", timeout=0.05))
    with pytest.raises(H2qError):
        client.infer("x", "long", timeout=0.03)
    assert isinstance(waits.exception(10), H2qError)


def register_and_remove(client: Client, daemon: DaemonProcess) -> None:
    client.import_model(script(daemon.folder, "passing"), "passing")
    client.remove("passing")


def connect(client: Client, daemon: DaemonProcess) -> None:
    with Client(str(daemon.socket)) as other:
        assert other.status().pid == client.status().pid


def held(daemon: DaemonProcess) -> dict[str, int]:
    """What the daemon and its zygote hold."""
    main, zygote = psutil.Process(daemon.process.pid), psutil.Process(daemon.zygote_pid())
    return {
        "descriptors": main.num_fds(),
        "zygote's descriptors": zygote.num_fds(),
        "threads": main.num_threads(),
        "zygote's threads": zygote.num_threads(),
        "processes": len(daemon.tree()),
        "files": len(list((daemon.folder / "state").rglob("*"))),
    }


def everything_else(client: Client, daemon: DaemonProcess) -> None:
    for work in (switch, crash, give_up, register_and_remove, connect, connect, connect):
        work(client, daemon)


@pytest.mark.parametrize(("work", "cycles"), [(load_and_unload, 200), (everything_else, 20)])
def test_nothing_is_left(tmp_path: Path, work: Callable[[Client, DaemonProcess], None], cycles: int) -> None:
    quiet = {"H2Q_LOG_LEVEL": "warning"}
    with running(tmp_path, MODELS, "failures: {backoff_first: 10ms, backoff_max: 10ms}", quiet) as daemon:
        client = daemon.client()

        def rest() -> None:
            """Back to where nothing is resident and nobody else is connected."""
            for other in daemon.clients:
                if other is not client:
                    other.close()
            if client.status().active is not None:
                client.unload()
            began = client.status().uptime_ms
            await_true(lambda: client.ps().models == [], "nothing is resident")
            await_true(lambda: client.status().uptime_ms > began + 1100, "a tick went by")

        for _ in range(max(10, cycles // 4)):
            work(client, daemon)
        rest()
        before, size = held(daemon), daemon.rss_bytes()
        for _ in range(cycles):
            work(client, daemon)
        rest()
        assert held(daemon) == before
        grown = daemon.rss_bytes() - size
        print(f"{work.__name__}: {grown:+} bytes in {cycles} cycles; {before}")
        assert grown < FLAT_BYTES
        assert not list((tmp_path / "state").rglob("*.new"))
