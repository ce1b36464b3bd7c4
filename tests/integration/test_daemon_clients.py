"""Clients as processes: those that die in the middle of something, and those of other users."""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from h2qctl import Client, H2qError
from tests.harness import DaemonProcess, await_true, background, client_process, code_of, line_of, running, script

STRANGER = 54321
READER = 54322
USER = 54323
ADMIN = 54324

GONE_S_MAX = 1.8
"""A client that vanished is found at the next sign of life, a second later at most."""

MODELS = {"a": {"tokens": 5000, "token_ms": 2}, "b": {"load_ms": 30_000}, "c": {"tokens": 4}}


@pytest.fixture(scope="module")
def daemon() -> Iterator[DaemonProcess]:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        access = f'access: {{read: ["{READER}"], use: ["{USER}"], admin: ["{ADMIN}"]}}'
        with running(folder, MODELS, f'socket: {{mode: "0666"}}\nresidency: {{patience: 0s}}\n{access}') as process:
            yield process


@pytest.fixture
def client(daemon: DaemonProcess) -> Iterator[Client]:
    with Client(str(daemon.socket)) as client:
        yield client
        await_true(lambda: client.status().running + client.status().waiting == 0, "nothing is left of the test")


def test_a_client_killed_in_mid_stream_frees_its_slot(daemon: DaemonProcess, client: Client) -> None:
    stream = "client = Client(path)\nfor piece in client.stream('x', 'a', max_tokens=5000):\n    said(piece)\n"
    with client_process(daemon, stream) as process:
        assert line_of(process) == "tok0"
        process.kill()
        began = time.monotonic()
        await_true(lambda: client.status().running == 0, "the slot is free")
        assert time.monotonic() - began < GONE_S_MAX
        assert client.ps().requests == []


def test_a_silent_client_killed_while_it_waits_for_an_answer_frees_its_slot(
    daemon: DaemonProcess, client: Client
) -> None:
    with client_process(daemon, "Client(path).infer('x', 'a', max_tokens=5000)") as process:
        await_true(lambda: client.status().running == 1, "it runs")
        process.kill()
        began = time.monotonic()
        await_true(lambda: client.status().running == 0, "the slot is free")
        assert time.monotonic() - began < GONE_S_MAX


def test_a_client_killed_in_the_queue_leaves_it(daemon: DaemonProcess, client: Client) -> None:
    runs = background(lambda: daemon.client().infer("x", "a", max_tokens=900))
    await_true(lambda: client.status().running == 1, "the first runs")
    with client_process(daemon, "Client(path).infer('x', 'a')") as process:
        await_true(lambda: client.status().waiting == 1, "the second waits")
        process.kill()
        began = time.monotonic()
        await_true(lambda: client.status().waiting == 0, "the line is empty")
        assert time.monotonic() - began < GONE_S_MAX
    assert runs.result(20).usage.completion_tokens == 900


def test_sixty_clients_that_die_at_once_all_leave_the_queue(daemon: DaemonProcess, client: Client) -> None:
    runs = background(lambda: daemon.client().infer("x", "a", max_tokens=2500))
    await_true(lambda: client.status().running == 1, "the first runs")
    code = """
import time
context = zmq.Context()
crowd = [context.socket(zmq.DEALER) for _ in range(60)]
for one in crowd:
    one.connect("ipc://" + path)
    one.send_multipart(request_frames(Request(1, 1, "infer.text"), m.Infer(prompt="x", model="a")))
time.sleep(60)
"""
    with client_process(daemon, code) as process:
        await_true(lambda: client.status().waiting == 60, "sixty wait")
        process.kill()
        began = time.monotonic()
        await_true(lambda: client.status().waiting == 0, "the line is empty")
        assert time.monotonic() - began < GONE_S_MAX
    assert runs.result(20).usage.completion_tokens == 2500


def test_a_load_that_only_a_dead_client_wanted_is_given_up(daemon: DaemonProcess, client: Client) -> None:
    with client_process(daemon, "Client(path).load('b')") as process:
        await_true(lambda: (switch := client.status().switch) is not None and switch.phase == "load", "it loads")
        process.kill()
        began = time.monotonic()
        await_true(lambda: client.status().switch is None, "the load is given up")
        assert time.monotonic() - began < GONE_S_MAX
    await_true(lambda: client.ps().models == [], "its process is gone")


def test_a_load_that_somebody_else_wants_too_goes_on(daemon: DaemonProcess, client: Client, tmp_path: Path) -> None:
    client.import_model(script(tmp_path, "joint", load_ms=2500), "joint")
    with client_process(daemon, "Client(path).load('joint')") as process:
        await_true(lambda: (switch := client.status().switch) is not None and switch.phase == "load", "it loads")
        joined = background(lambda: daemon.client().load("joint"))
        await_true(lambda: client.status().waiting == 2, "both wait for it")
        process.kill()
        assert joined.result(20).changed
    assert len([line for line in client.explain("joint").story if line.now == "loading"]) == 1


root = pytest.mark.skipif(os.getuid() != 0, reason="needs root: it becomes other users")


@root
@pytest.mark.root
def test_a_user_that_is_on_no_list_is_refused_at_the_door(daemon: DaemonProcess) -> None:
    code = "try:\n    Client(path).status()\nexcept H2qError as error:\n    said(error.code)\n"
    with client_process(daemon, code, STRANGER) as process:
        assert line_of(process) == "not_permitted"
    refusal = daemon.log("peer.refused")[-1]
    assert refusal["uid"] == STRANGER


_TRIES = """
client = Client(path)
def code(work):
    try:
        work()
    except H2qError as error:
        return error.code
    return "ok"
said(client.hello().access)
said(code(client.status))
said(code(lambda: client.infer("x", "c")))
said(code(lambda: client.load("c")))
said(code(lambda: client.import_model("/etc/passwd", "p")))
"""


@root
@pytest.mark.root
@pytest.mark.parametrize(
    ("uid", "outcomes"),
    [
        (READER, ["read", "ok", "not_permitted", "not_permitted", "not_permitted"]),
        (USER, ["use", "ok", "ok", "not_permitted", "not_permitted"]),
        (ADMIN, ["admin", "ok", "ok", "ok", "invalid_model_file"]),
        (0, ["admin", "ok", "ok", "ok", "invalid_model_file"]),
    ],
)
def test_each_user_may_do_what_the_lists_say(daemon: DaemonProcess, uid: int, outcomes: list[str]) -> None:
    with client_process(daemon, _TRIES, uid) as process:
        assert [line_of(process) for _ in outcomes] == outcomes


@root
@pytest.mark.root
def test_only_an_admin_cancels_what_is_another_users(daemon: DaemonProcess, client: Client) -> None:
    runs = background(lambda: daemon.client().infer("x", "a", max_tokens=5000))
    await_true(lambda: client.status().running == 1, "it runs")
    (row,) = client.ps().requests
    cancel = (
        f"try:\n    said(Client(path).cancel('{row.request}').request)\nexcept H2qError as error:\n"
        "    said(error.code)\n"
    )
    with client_process(daemon, cancel, USER) as process:
        assert line_of(process) == "not_permitted"
    assert client.status().running == 1
    with client_process(daemon, cancel, ADMIN) as process:
        assert line_of(process) == row.request
    assert code_of(runs) == "cancelled"


def test_ones_own_request_is_cancelled_from_another_connection(daemon: DaemonProcess, client: Client) -> None:
    runs = background(lambda: daemon.client().infer("x", "a", max_tokens=5000))
    await_true(lambda: client.status().running == 1, "it runs")
    (row,) = client.ps().requests
    assert client.cancel(row.request).request == row.request
    assert code_of(runs) == "cancelled"
    with pytest.raises(H2qError, match="no such request"):
        client.cancel(row.request)
