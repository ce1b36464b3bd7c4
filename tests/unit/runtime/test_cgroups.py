"""Control groups: found in trees of our own, made and removed in the real kernel where this machine lets us."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from h2qd.runtime import cgroups
from h2qd.runtime.cgroups import V1, V2, Group, NoGroupsError, open_home
from h2qd.runtime.containment import MARGIN_BYTES_MIN, Containers

MIB = 2**20
PID = 4711
DEAD = 2**22 + 1  # above the largest pid that Linux hands out
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID_MOUNTS = (
    "30 23 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
CONTAINER_MOUNT = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


class Tree:
    """A /proc and a /sys under a folder: files that take whatever is written."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str = "") -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def process(self, cgroup: str, mounts: str) -> None:
        self.write("proc/self/cgroup", cgroup)
        self.write("proc/self/mountinfo", mounts)

    def group(self, path: str) -> Path:
        folder = self.root / "sys/fs/cgroup" / path
        folder.mkdir(parents=True)
        return folder

    def v2(self, controllers: str = "cpu memory pids") -> Path:
        self.process("0::/system.slice/h2qd.service\n", V2_MOUNT)
        own = self.group("system.slice/h2qd.service")
        (own / "cgroup.controllers").write_text(controllers)
        return own

    def v1(self) -> Path:
        self.process("4:memory:/box\n1:cpu:/\n0::/\n", HYBRID_MOUNTS)
        self.group("unified")
        return self.group("memory/box")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


# --- finding ----------------------------------------------------------------------------------------


def test_v2_moves_the_daemon_into_a_leaf_before_it_asks_for_limits(tree: Tree) -> None:
    own = tree.v2()
    home = open_home(tree.root, PID)
    assert home.kind == "v2"
    folder = own / f"h2qd-{PID}"
    assert (folder / "supervisor/cgroup.procs").read_text() == str(PID)
    assert (own / "cgroup.subtree_control").read_text() == "+cpu"  # the last of two writes
    group = home.make("worker-1", 100 * MIB)
    assert (group.folder / "memory.max").read_text() == str(100 * MIB)
    assert (group.folder / "memory.swap.max").read_text() == "0"
    assert (group.folder / "memory.oom.group").read_text() == "1"
    assert (group.folder / "cpu.weight").read_text() == "25"
    home.close()
    assert (own / "cgroup.subtree_control").read_text() == "-memory"  # the last of two, in reverse
    assert (own / "cgroup.procs").read_text() == str(PID)


def test_controllers_that_were_on_are_left_on(tree: Tree) -> None:
    own = tree.v2()
    (own / "cgroup.subtree_control").write_text("cpu memory pids")
    open_home(tree.root, PID).close()
    assert (own / "cgroup.subtree_control").read_text() == "cpu memory pids"


def test_a_daemon_that_cannot_have_limits_moves_back(tree: Tree) -> None:
    own = tree.v2()
    (own / "cgroup.subtree_control").mkdir()  # refuses to be written
    with pytest.raises(NoGroupsError, match="cgroup v2: Is a directory; no cgroup v1"):
        open_home(tree.root, PID)
    assert (own / "cgroup.procs").read_text() == str(PID)


def test_v2_without_the_memory_controller_gives_way_to_v1(tree: Tree) -> None:
    own = tree.v1()
    home = open_home(tree.root, PID)
    assert home.kind == "v1"
    group = home.make("worker-1", 100 * MIB)
    assert group.folder == own / f"h2qd-{PID}/worker-1"
    assert (group.folder / "memory.limit_in_bytes").read_text() == str(100 * MIB)
    assert (group.folder / "memory.swappiness").read_text() == "0"
    assert not (own / f"h2qd-{PID}/supervisor").exists()


def test_a_container_has_its_group_at_the_mount_point(tree: Tree) -> None:
    tree.process("4:memory:/\n", CONTAINER_MOUNT)
    own = tree.group("memory")
    assert open_home(tree.root, PID).make("worker-1", MIB).folder == own / f"h2qd-{PID}/worker-1"


@pytest.mark.parametrize(
    ("cgroup", "mounts", "why"),
    [
        ("", "", "no cgroup v2 .* is mounted; no cgroup v1 .* is mounted"),
        ("0::/\n", V2_MOUNT, "cgroup v2 has no memory controller here; no cgroup v1"),
        ("4:memory:/nowhere\n", HYBRID_MOUNTS, "no cgroup v2 .* is mounted; cgroup v1: No such file or directory"),
    ],
)
def test_why_there_are_no_groups(tree: Tree, cgroup: str, mounts: str, why: str) -> None:
    tree.process(cgroup, mounts)
    with pytest.raises(NoGroupsError, match=why):
        open_home(tree.root, PID)


def test_homes_of_the_dead_go_and_those_of_the_living_stay(tree: Tree) -> None:
    own = tree.v1()
    tree.write("proc/77/comm")
    for name in (f"h2qd-{PID}/worker-9", "h2qd-77/worker-1", f"h2qd-{DEAD}/worker-1", "h2qd-x", "other"):
        (own / name).mkdir(parents=True)
    open_home(tree.root, PID)
    assert sorted(p.name for p in own.iterdir()) == sorted([f"h2qd-{PID}", "h2qd-77", "h2qd-x", "other"])
    assert not list((own / f"h2qd-{PID}").iterdir()), "an earlier daemon had the same pid"


# --- figures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "files", "figures"),
    [
        (V2, {"memory.events": "low 0\nmax 9\noom 2\noom_kill 1\n", "memory.peak": "123\n"}, (1, 2, 123)),
        (V2, {"memory.events": "oom 0\noom_kill 0\n"}, (0, 0, 0)),
        (
            V1,
            {
                "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
                "memory.failcnt": "7\n",
                "memory.max_usage_in_bytes": "456\n",
            },
            (3, 7, 456),
        ),
        # Linux 4.9, as older Jetsons have it: kills are not counted, the limit's being reached is.
        (V1, {"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n", "memory.failcnt": "7\n"}, (7, 7, 0)),
        (V1, {}, (0, 0, 0)),
    ],
)
def test_figures(
    tmp_path: Path, dialect: cgroups.Dialect, files: dict[str, str], figures: tuple[int, int, int]
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    group = Group(tmp_path, dialect)
    assert (group.oom_kills, group.overruns, group.peak_bytes) == figures


# --- what a worker may hold -------------------------------------------------------------------------


def quarter(planned: int) -> int:
    return planned // 4


def opened(tree: Tree) -> Containers:
    containers = Containers(quarter, str(tree.root))
    containers.open()
    return containers


def test_the_limit_is_the_plan_and_a_margin(tree: Tree) -> None:
    tree.v1()
    containers = opened(tree)
    assert containers.contain(1, 1000 * MIB).limit_bytes == 1250 * MIB
    assert containers.contain(2, 40 * MIB).limit_bytes == 40 * MIB + MARGIN_BYTES_MIN
    assert (containers.kind, containers.trouble) == ("v1", "")


def test_a_kill_in_the_group_is_told_with_plan_limit_and_peak(tree: Tree) -> None:
    own = tree.v1()
    container = opened(tree).contain(1, 1024 * MIB)
    assert container.fault("m", 0) is None, "killed by somebody, and not for memory"
    group = own / f"h2qd-{os.getpid()}/worker-1"
    (group / "memory.oom_control").write_text("oom_kill 1\n")
    (group / "memory.failcnt").write_text("12\n")
    (group / "memory.max_usage_in_bytes").write_text(str(1280 * MIB))
    fault = container.fault("m", 5)
    assert fault is not None
    assert fault.code == "worker_oom"
    assert fault.message == (
        "cannot go on: the process of m needed more than its limit of 1.25 GiB (plan 1.00 GiB, peak 1.25 GiB)"
    )


def test_a_kill_within_the_limit_is_the_machines_doing(tree: Tree) -> None:
    own = tree.v1()
    container = opened(tree).contain(1, 1024 * MIB)
    (own / f"h2qd-{os.getpid()}/worker-1/memory.oom_control").write_text("oom_kill 1\n")
    fault = container.fault("m", 512 * MIB)
    assert fault is not None
    assert fault.message.endswith("ran out of memory (plan 1.00 GiB, limit 1.25 GiB, peak 0.50 GiB)")


def test_without_groups_the_machines_count_of_kills_decides(tree: Tree) -> None:
    tree.write("proc/vmstat", "nr_free_pages 5\noom_kill 3\n")
    containers = opened(tree)
    assert containers.kind == "none"
    container = containers.contain(1, 1024 * MIB)
    container.attach(os.getpid())
    assert container.limit_bytes is None
    assert container.fault("m", 0) is None
    tree.write("proc/vmstat", "nr_free_pages 5\noom_kill 4\n")
    fault = container.fault("m", 512 * MIB)
    assert fault is not None
    assert fault.code == "worker_oom"
    assert fault.message.endswith("ran out of memory (plan 1.00 GiB, no limit, peak 0.50 GiB)")
    container.close()
    containers.close()


def test_a_failure_to_contain_is_said_once_and_the_worker_goes_on(
    tree: Tree, capfd: pytest.CaptureFixture[str]
) -> None:
    own = tree.v1()
    containers = opened(tree)
    (own / f"h2qd-{os.getpid()}").rmdir()
    (own / f"h2qd-{os.getpid()}").write_text("")  # nothing can be made below a file
    for worker in (1, 2):
        container = containers.contain(worker, MIB)
        assert container.limit_bytes is None
        container.attach(os.getpid())
        container.close()
    assert "cannot make a cgroup" in containers.trouble
    out, err = capfd.readouterr()
    assert (out + err).count("worker.not_contained") == 1


def test_a_process_that_cannot_be_moved_has_no_walls_until_the_next_one_has(tree: Tree) -> None:
    own = tree.v1()
    containers = opened(tree)
    container = containers.contain(1, MIB)
    procs = own / f"h2qd-{os.getpid()}/worker-1/cgroup.procs"
    procs.mkdir()  # refuses to be written
    container.attach(PID)
    assert container.limit_bytes is None
    assert "cannot move process" in containers.trouble
    containers.contain(2, MIB).attach(PID)
    assert containers.trouble == ""


# --- the real kernel --------------------------------------------------------------------------------


def real_v1() -> Path | None:
    own = cgroups._own_group(Path("/"), V1.mount)
    return own if own is not None and os.access(own / "memory.limit_in_bytes", os.W_OK) else None


def real_v2() -> Path | None:
    """The root of a v2 hierarchy that nobody uses: there these tests disturb nothing."""
    own = cgroups._own_group(Path("/"), V2.mount)
    if own is None or (own / "cgroup.type").exists() or (own / "cgroup.subtree_control").read_text().strip():
        return None
    usable = os.access(own / "cgroup.subtree_control", os.W_OK) and (own / "cgroup.controllers").read_text().strip()
    return own if usable else None


EATER = "import sys; sys.stdin.read(1); held = []\nwhile True: held.append(b'\\1' * 2**20)"


@pytest.mark.skipif(real_v1() is None, reason="no cgroup v1 memory controller that may be used")
def test_v1_kills_what_outgrows_its_group_and_nothing_else() -> None:
    own = real_v1()
    assert own is not None
    home = open_home(Path("/"), os.getpid())
    group = home.make("worker-1", 48 * MIB)
    with subprocess.Popen([sys.executable, "-c", EATER], stdin=subprocess.PIPE) as eater:
        assert eater.stdin is not None
        group.attach(eater.pid)
        home.remove(group)
        assert group.folder.exists(), "a group with a process in it stays"
        eater.stdin.write(b"!")
        eater.stdin.flush()
        assert eater.wait(20) == -signal.SIGKILL
    assert group.oom_kills == 1
    assert group.overruns > 0
    assert 40 * MIB < group.peak_bytes <= 48 * MIB
    home.remove(group)
    assert not group.folder.exists()
    home.close()
    assert not (own / f"h2qd-{os.getpid()}").exists()


SCRIPT = """
import json, os, subprocess, sys
from dataclasses import replace
from pathlib import Path
from h2qd.runtime.cgroups import V2, Home
own, controller = Path(sys.argv[1]), sys.argv[2]
(own / "cgroup.procs").write_text(str(os.getpid()))
def procs(folder): return len((folder / "cgroup.procs").read_text().split())
told = {}
try:
    home = Home(own, replace(V2, controllers=(controller,), limit="cgroup.max.descendants"), Path("/"), os.getpid())
except OSError as error:
    told["refused"] = error.strerror
else:
    with subprocess.Popen(["sleep", "60"]) as zygote, subprocess.Popen(["sleep", "60"]) as worker:
        group = home.make("worker-1", 7)
        group.attach(worker.pid)
        told["inside"] = [procs(own), procs(group.folder.parent / "supervisor"), procs(group.folder)]
        told["limit"] = (group.folder / "cgroup.max.descendants").read_text().strip()
        worker.kill()
        worker.wait()
        home.remove(group)
        home.close()
        zygote.kill()
told["after"] = [sorted(p.name for p in own.iterdir() if p.is_dir()), procs(own)]
print(json.dumps(told))
"""


@pytest.fixture
def v2_group() -> Iterator[tuple[Path, str]]:
    """A v2 group of our own, and a controller that it can switch on for inner groups."""
    top = real_v2()
    if top is None:
        pytest.skip("no cgroup v2 hierarchy that nobody uses")
    controller = (top / "cgroup.controllers").read_text().split()[0]
    own = top / f"h2qd-test-{os.getpid()}"
    (top / "cgroup.subtree_control").write_text(f"+{controller}")
    own.mkdir()
    yield own, controller
    own.rmdir()
    (top / "cgroup.subtree_control").write_text(f"-{controller}")


def run_in(group: tuple[Path, str]) -> dict[str, object]:
    arguments = [sys.executable, "-c", SCRIPT, str(group[0]), group[1]]
    told = json.loads(subprocess.run(arguments, capture_output=True, check=True, timeout=30).stdout)
    assert isinstance(told, dict)
    return told


def test_v2_gives_limits_to_groups_beside_the_daemons_leaf(v2_group: tuple[Path, str]) -> None:
    (v2_group[0] / f"h2qd-{DEAD}/worker-1").mkdir(parents=True)
    assert run_in(v2_group) == {"inside": [0, 2, 1], "limit": "7", "after": [[], 1]}


def test_v2_gives_no_limits_in_a_group_shared_with_others(v2_group: tuple[Path, str]) -> None:
    with subprocess.Popen(["/bin/sleep", "60"]) as other:
        (v2_group[0] / "cgroup.procs").write_text(str(other.pid))
        told = run_in(v2_group)
        other.kill()
    assert told == {"refused": "Device or resource busy", "after": [[], 2]}
    assert (v2_group[0] / "cgroup.subtree_control").read_text().strip() == ""
