"""More connections than there are descriptors: libzmq would end the process, so the door closes before that."""

import resource
from pathlib import Path

import pytest

from h2qctl import Client, H2qError
from tests.harness import await_true, client_process, line_of, running

DESCRIPTORS = 512
CONNECTIONS = 900

_CROWD = f"""
import socket, time
crowd, refused = [], 0
for _ in range({CONNECTIONS}):
    made = socket.socket(socket.AF_UNIX)
    try:
        made.connect(path)
        crowd.append(made)
    except OSError:
        refused += 1
said(len(crowd))
time.sleep(60)
"""


def test_a_crowd_is_kept_out_and_those_inside_are_served(tmp_path: Path) -> None:
    with running(tmp_path, {"a": {"tokens": 4}}) as daemon:
        client = daemon.client()
        client.load("a")
        limits = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, limits[1]))
        for _ in range(2):
            with client_process(daemon, _CROWD) as crowd:
                inside = int(line_of(crowd))
                assert DESCRIPTORS // 5 < inside < CONNECTIONS
                assert not daemon.socket.exists()
                with Client(str(daemon.socket)) as late, pytest.raises(H2qError, match="cannot reach the daemon"):
                    late.status()
                assert client.infer("x").finish == "stop"
                assert client.unload("a").changed
                assert client.load("a").changed
            await_true(daemon.socket.exists, "the door opens again")
            with Client(str(daemon.socket)) as late:
                assert late.status().pid == daemon.process.pid
        assert len(daemon.log("door.closed")) >= 2


def test_a_daemon_that_stops_behind_a_closed_door_leaves_no_file(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        limits = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, limits[1]))
        with client_process(daemon, _CROWD) as crowd:
            assert line_of(crowd)
            assert daemon.stop() == 0
            assert not list(tmp_path.glob("h2qd.sock*"))
