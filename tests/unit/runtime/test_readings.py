"""Readings of the device's memory: on trees of our own, in a real cgroup with a limit, and on this very machine."""

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from h2qd.runtime import cgroups
from h2qd.runtime.accelerators import Accelerators
from h2qd.runtime.readings import Gauge, GroupEvents, Reading
from tests import oracle
from tests.unit.runtime.kernel_tree import MEMINFO, V1_MOUNT, V2_MOUNT, Tree

MIB = 2**20
GIB = 2**30
PAGE = os.sysconf("SC_PAGE_SIZE")
PSI = "some avg10={} avg60=0.00 avg300=0.00 total=0\nfull avg10={} avg60=0.00 avg300=0.00 total=0\n"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def gauge(tree: Tree) -> Iterator[Gauge]:
    gauge = Gauge(tree.root)
    yield gauge
    gauge.close()


def open_files() -> list[str]:
    return [file.name for file in Path("/proc/self/fd").iterdir()]


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """As if the process had as many files open as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 256), hard))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(OSError, match="Too many open files"):
            os.open("/dev/null", os.O_RDONLY)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)


# --- the machine ------------------------------------------------------------------------------------


def test_a_machine_without_groups_swap_or_pressure(gauge: Gauge) -> None:
    assert gauge.read(0.0) == Reading(total_bytes=8 * GIB, available_bytes=4 * GIB)
    assert gauge.read(1.0).used_share == 0.5


def test_before_anything_is_known_nothing_is_used(tmp_path: Path) -> None:
    reading = Gauge(str(tmp_path)).read(0.0)
    assert reading == Reading()
    assert reading.used_share == 0.0


def test_swap(tree: Tree, gauge: Gauge) -> None:
    tree.write("proc/meminfo", MEMINFO + "SwapTotal: 2097152 kB\nSwapFree: 1048576 kB\n")
    tree.write("proc/vmstat", "pswpin 1000\npswpout 7\n")
    first = gauge.read(10.0)
    assert (first.swap_total_bytes, first.swap_used_bytes) == (2 * GIB, GIB)
    assert first.swap_in_bytes_per_s == 0, "a rate needs two readings"
    tree.write("proc/vmstat", "pswpin 1300\npswpout 9\n")
    assert gauge.read(12.0).swap_in_bytes_per_s == 150 * PAGE
    assert gauge.read(12.0).swap_in_bytes_per_s == 150 * PAGE, "no time has passed"
    assert gauge.read(13.0).swap_in_bytes_per_s == 0
    tree.write("proc/vmstat", "pswpin 5\n")
    assert gauge.read(14.0).swap_in_bytes_per_s == 0, "a counter that went back is no rate"


def test_stalls_of_the_machine(tree: Tree, gauge: Gauge) -> None:
    tree.write("proc/pressure/memory", PSI.format("12.34", "5.60"))
    reading = gauge.read(0.0)
    assert (reading.some_stall_share, reading.full_stall_share) == (12.34, 5.6)
    assert gauge.pressure_files == (Path(tree.root, "proc/pressure/memory"),)


def test_what_can_no_longer_be_read_keeps_its_value(tree: Tree, gauge: Gauge) -> None:
    tree.process("0::/a\n", V2_MOUNT)
    tree.group("a", max=3 * GIB, high="max", current=GIB, stat="inactive_file 0")
    before = gauge.read(0.0)
    assert (before.total_bytes, before.available_bytes) == (3 * GIB, 2 * GIB)
    for text in ("", "MemTotal: 1 kB\n", "MemTotal: -1 kB\nMemAvailable: x kB\n", "\0\xff"):
        tree.write("proc/meminfo", text)
        assert gauge.read(1.0) == before
    tree.group("a", current="")
    assert gauge.read(2.0) == before
    Path(tree.root, "proc/self/cgroup").unlink()
    assert gauge.read(3.0) == before


# --- groups -----------------------------------------------------------------------------------------


def test_v2_the_innermost_limited_group(tree: Tree, gauge: Gauge) -> None:
    tree.process("0::/system.slice/h2qd.service/leaf\n", V2_MOUNT)
    tree.group("system.slice/h2qd.service/leaf", max="max", high="max", current=5, stat="", pressure=PSI)
    tree.group(
        "system.slice/h2qd.service",
        max=3 * GIB,
        high=2 * GIB,
        current=GIB,
        stat=f"anon 5\ninactive_file {GIB // 4}",
        events="low 0\nhigh 3\nmax 2\noom 1\noom_kill 1\noom_group_kill 0",
        pressure=PSI.format("7.00", "1.00"),
    )
    tree.group("system.slice", max=6 * GIB, high="max", current=5 * GIB, stat="inactive_file 0")
    tree.write("proc/pressure/memory", PSI.format("90.00", "80.00"))
    reading = gauge.read(0.0)
    assert reading == Reading(
        total_bytes=2 * GIB,
        available_bytes=GIB,
        group_used_bytes=GIB - GIB // 4,
        group_high_bytes=2 * GIB,
        group_max_bytes=3 * GIB,
        group_events=GroupEvents(oom=1, oom_kill=1, high=3, max=2),
        some_stall_share=7.0,
        full_stall_share=1.0,
    )
    assert reading.total_bytes == oracle.memory_limit(tree.root)
    assert reading.available_bytes == oracle.memory_available(tree.root)
    own = Path(tree.root, "sys/fs/cgroup/system.slice/h2qd.service/memory.pressure")
    assert gauge.pressure_files == (own, Path(tree.root, "proc/pressure/memory"))


def test_a_group_whose_pressure_is_not_told_has_the_machines(tree: Tree, gauge: Gauge) -> None:
    tree.process("0::/a\n", V2_MOUNT)
    tree.group("a", max=GIB, high="max", current=0, stat="")
    tree.write("proc/pressure/memory", PSI.format("9.00", "8.00"))
    assert gauge.read(0.0).some_stall_share == 9.0


def test_v1(tree: Tree, gauge: Gauge) -> None:
    tree.process("4:memory:/a/b\n0::/\n", V1_MOUNT)
    stat = f"inactive_file 0\ntotal_inactive_file {GIB // 2}"
    tree.group("memory/a/b", limit_in_bytes=9223372036854771712, usage_in_bytes=GIB, stat=stat, failcnt=1)
    tree.group("memory/a", limit_in_bytes=2 * GIB, usage_in_bytes=GIB, stat=stat, failcnt=8)
    tree.group("memory/a", oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 4")
    assert gauge.read(0.0) == Reading(
        total_bytes=2 * GIB,
        available_bytes=GIB + GIB // 2,
        group_used_bytes=GIB // 2,
        group_max_bytes=2 * GIB,
        group_events=GroupEvents(oom_kill=4, max=8),
    )
    assert gauge.pressure_files == (Path(tree.root, "proc/pressure/memory"),)


def test_limits_and_groups_may_change(tree: Tree, gauge: Gauge) -> None:
    tree.process("0::/a\n", V2_MOUNT)
    tree.group("a", max="max", high="max", current=GIB, stat="")
    tree.group("b", max=GIB, high="max", current=0, stat="")
    assert gauge.read(0.0).group_max_bytes is None
    tree.group("a", max=2 * GIB)
    assert gauge.read(1.0).available_bytes == GIB
    tree.group("a", max="max")
    assert gauge.read(2.0).total_bytes == 8 * GIB
    tree.write("proc/self/cgroup", "0::/b\n")
    assert gauge.read(3.0).total_bytes == GIB


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=80), number=st.integers(-1, 2**70))
def test_no_text_of_a_kernel_raises(tmp_path_factory: pytest.TempPathFactory, text: str, number: int) -> None:
    tree = Tree(tmp_path_factory.mktemp("hostile"))
    tree.write("proc/meminfo", f"MemTotal: {number} kB\nMemAvailable: {number} kB\n{text}")
    tree.write("proc/vmstat", f"pswpin {number}\n{text}")
    tree.write("proc/pressure/memory", text)
    tree.process(f"0::/a\n{text}", V2_MOUNT + text)
    tree.group("a", max=number, high=text, current=text, stat=text, events=text, pressure=text)
    gauge = Gauge(tree.root)
    for now_s in (0.0, 1.0):
        reading = gauge.read(now_s)
        assert 0 <= reading.used_share <= 1
        assert reading.available_bytes >= 0
    gauge.close()


# --- file descriptors -------------------------------------------------------------------------------


def test_it_still_sees_when_no_file_can_be_opened(tree: Tree, gauge: Gauge) -> None:
    tree.process("0::/a\n", V2_MOUNT)
    tree.group("a", max=3 * GIB, high="max", current=GIB, stat="inactive_file 0", pressure=PSI.format("1.00", "0.00"))
    assert gauge.read(0.0).available_bytes == 2 * GIB
    folder = Path(tree.root, "sys/fs/cgroup/a")
    with (folder / "memory.current").open("w") as current, (folder / "memory.pressure").open("w") as pressure:
        with no_more_files():
            current.write(f"{2 * GIB}\n")
            pressure.write(PSI.format("50.00", "0.00"))
            current.flush()
            pressure.flush()
            reading = gauge.read(1.0)
        assert (reading.total_bytes, reading.available_bytes, reading.some_stall_share) == (3 * GIB, GIB, 50.0)


def test_out_of_files_from_the_start(gauge: Gauge) -> None:
    with no_more_files():
        assert gauge.read(0.0) == Reading()
    assert gauge.read(1.0).total_bytes == 8 * GIB


def test_its_files_are_few_and_given_back(tree: Tree) -> None:
    tree.process("0::/a/b/c\n", V2_MOUNT)
    for path in ("a/b/c", "a/b", "a"):
        tree.group(path, max=GIB, high="max", current=0, stat="", events="")
    before = open_files()
    gauge = Gauge(tree.root)
    gauge.read(0.0)
    held = open_files()
    for now_s in range(1, 20):
        gauge.read(float(now_s))
    assert open_files() == held
    assert len(held) - len(before) < 20
    gauge.close()
    assert open_files() == before


# --- here -------------------------------------------------------------------------------------------


def test_this_machine() -> None:
    gauge = Gauge(accelerators=Accelerators.open())
    reading = gauge.read(time.monotonic())
    gauge.close()
    assert reading.total_bytes == oracle.memory_limit()
    assert reading.available_bytes == pytest.approx(oracle.memory_available(), rel=0.2), "others take and give back"
    assert 0 < reading.used_share < 1


def test_a_reading_takes_less_than_two_milliseconds() -> None:
    gauge = Gauge()
    took_s = []
    for _ in range(101):
        began_s = time.perf_counter()
        gauge.read(began_s)
        took_s.append(time.perf_counter() - began_s)
    gauge.close()
    assert statistics.median(took_s) < 0.002


IN_A_GROUP = """
import dataclasses, json, sys
from h2qd.runtime.readings import Gauge
sys.stdin.readline()
gauge = Gauge()
before = gauge.read(0.0)
block = bytearray(b"x") * (64 * 2**20)
during = gauge.read(1.0)
print(json.dumps([dataclasses.asdict(before), dataclasses.asdict(during)]))
"""


def test_in_a_real_group() -> None:
    try:
        home = cgroups.open_home(Path("/"), os.getpid())
    except cgroups.NoGroupsError as error:
        pytest.skip(str(error))
    try:
        group = home.make("reading", 200 * MIB)
        child = subprocess.Popen([sys.executable, "-c", IN_A_GROUP], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        group.attach(child.pid)
        out, _ = child.communicate(b"\n", timeout=60)
        home.remove(group)
    finally:
        home.close()
    before, during = json.loads(out)
    assert before["total_bytes"] == before["group_max_bytes"] == 200 * MIB
    assert during["available_bytes"] == 200 * MIB - during["group_used_bytes"]
    assert 60 * MIB < during["group_used_bytes"] - before["group_used_bytes"] < 80 * MIB
    assert during["group_events"]["oom_kill"] == 0
