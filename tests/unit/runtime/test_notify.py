"""What systemd hears, on a real datagram socket."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from h2qd.runtime.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@h2qd-test-{tmp_path.name}-{id(tmp_path)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address.replace("@", "\0", 1))
        sock.setblocking(False)
        yield sock, address


def test_what_systemd_hears(listener: tuple[socket.socket, str]) -> None:
    sock, address = listener
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": address})
    assert notifier.ready("serving")
    assert sock.recv(4096) == b"READY=1\nSTATUS=serving"
    assert notifier.ready()
    assert sock.recv(4096) == b"READY=1"
    assert notifier.status("gemma3 is resident")
    assert sock.recv(4096) == b"STATUS=gemma3 is resident"
    assert notifier.watchdog()
    assert sock.recv(4096) == b"WATCHDOG=1"
    assert notifier.main_pid(42)
    assert sock.recv(4096) == b"MAINPID=42"
    assert notifier.stopping("draining")
    assert sock.recv(4096) == b"STOPPING=1\nSTATUS=draining"
    notifier.close()
    assert not notifier.ready()
    notifier.close()


def test_a_status_stays_one_assignment(listener: tuple[socket.socket, str]) -> None:
    sock, address = listener
    notifier = Notifier(address)
    assert notifier.status("a\nMAINPID=1\x1b \ud800")
    assert sock.recv(4096) == b"STATUS=a\\nMAINPID=1\\x1b \\ud800"
    notifier.close()


def test_a_full_queue_does_not_block(listener: tuple[socket.socket, str]) -> None:
    _, address = listener
    notifier = Notifier(address)
    sent = 0
    while notifier.watchdog():
        sent += 1
        assert sent < 100_000
    assert sent > 0
    notifier.close()


@pytest.mark.parametrize(
    "address",
    ["", "/nowhere/notify", "@nobody-listens-here", "relative", "vsock:2:1234", "/" + "x" * 200, "/a\0b", "@"],
)
def test_nobody_listens(address: str) -> None:
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": address} if address else {})
    assert not notifier.ready("x")
    assert not notifier.watchdog()
    notifier.close()


def test_an_address_that_is_no_text() -> None:
    assert not Notifier("/\ud800").ready()


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "9" * 30}, None),
        ({"WATCHDOG_PID": "7"}, None),
    ],
)
def test_the_watchdog_interval(environ: dict[str, str], interval_s: float | None) -> None:
    assert Notifier.from_environ(environ, pid=7).watchdog_interval_s == interval_s
