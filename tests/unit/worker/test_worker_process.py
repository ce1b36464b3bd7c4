"""What Linux is told about a process; each test tells it to a process of its own."""

import os
import subprocess
import sys

import pytest

from tests.unit.worker.zygote_peer import REPOSITORY


def run(code: str, new_session: bool = False) -> subprocess.CompletedProcess[str]:
    program = f"import os, signal, resource\nfrom h2qd.worker import process\n{code}"
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        timeout=20,
        start_new_session=new_session,
    )


def test_a_parent_gone_before_it_was_named_ends_the_child() -> None:
    done = run("process.die_with_parent(os.getppid() + 1)\nprint('alive')")
    assert (done.returncode, done.stdout) == (os.EX_UNAVAILABLE, "")


def test_the_named_parent_is_accepted() -> None:
    assert run("process.die_with_parent(os.getppid())\nprint('alive')").stdout == "alive\n"


@pytest.mark.parametrize("new_session", [False, True])
def test_leave_terminal(*, new_session: bool) -> None:
    done = run(
        "process.leave_terminal()\nos.kill(os.getpid(), signal.SIGINT)\nprint(os.getsid(0) == os.getpid())",
        new_session=new_session,
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_leave_terminal_as_leader_of_a_group_stays_in_its_own() -> None:
    done = run("os.setpgid(0, 0)\nprocess.leave_terminal()\nprint(os.getpgrp() == os.getpid())")
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_close_all_but_one() -> None:
    done = run(
        "fds = [os.open('/dev/null', 0) for _ in range(5)]\n"
        "process.close_all_but(fds[2])\n"
        "left = [fd for fd in range(3, 64) if os.path.exists(f'/proc/self/fd/{fd}')]\n"
        "print(left == [fds[2]])"
    )
    assert done.stdout == "True\n"


def test_no_cores() -> None:
    assert run("process.drop_cores()\nprint(resource.getrlimit(resource.RLIMIT_CORE))").stdout == "(0, 0)\n"


def test_names_are_cut_by_the_kernel_not_refused() -> None:
    code = "process.name_process('h2qd-worker-123456')\nprint(open('/proc/self/comm').read(), end='')"
    assert run(code).stdout == "h2qd-worker-123\n"


def test_priorities() -> None:
    code = "process.yield_to_others(500, 3)\nprint(open('/proc/self/oom_score_adj').read(), os.nice(0))"
    assert run(code).stdout.split() == ["500", "3"]


def test_a_refused_priority_is_told_and_survived() -> None:
    done = run("process.yield_to_others(5000, 3)\nprint('alive')")
    assert done.stdout == "alive\n"
    assert '"event":"worker.priority_refused"' in done.stderr


def test_a_child_that_has_ended_needs_no_group() -> None:
    code = "pid = os.fork()\nif pid == 0: os._exit(0)\nos.waitpid(pid, 0)\nprocess.lead_group(pid)\nprint('alive')"
    assert run(code).stdout == "alive\n"
