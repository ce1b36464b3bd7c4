"""Memory where it binds: parsers on text, readings on trees of our own, and on this very process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from h2qd.runtime import meter
from tests import oracle
from tests.unit.runtime.kernel_tree import MEMINFO, V1_MOUNT, V2_MOUNT, Tree

GIB = 2**30
PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


# --- parsers ----------------------------------------------------------------------------------------


def test_sizes_are_bytes() -> None:
    assert meter.parse_sizes(MEMINFO) == {
        "MemTotal": 8 * GIB,
        "MemFree": 100000 * 1024,
        "MemAvailable": 4 * GIB,
    }


def test_memberships_by_controller() -> None:
    text = "9:name=systemd:/a\n4:cpu,memory:/b:c\n0::/d\n"
    assert meter.parse_memberships(text) == {"name=systemd": "/a", "cpu": "/b:c", "memory": "/b:c", "": "/d"}


def test_mounts_with_blanks() -> None:
    text = r"30 23 0:26 /x\040y /sys/a\134b rw - cgroup2 cgroup2 rw" + "\n" + V1_MOUNT
    assert meter.parse_mounts(text) == {"": ("/x y", "/sys/a\\b"), "memory": ("/", "/sys/fs/cgroup/memory")}


@pytest.mark.parametrize(("text", "limit"), [("max\n", None), ("0\n", 0), ("4096\n", 4096), ("", None), ("-1", None)])
def test_limits(text: str, limit: int | None) -> None:
    assert meter.parse_limit(text) == limit


def test_only_what_the_kernel_could_mean_is_a_number() -> None:
    assert meter.parse_counts("a ²\nb ٣\nc 18446744073709551615\nd 184467440737095516150\n") == {"c": 2**64 - 1}
    assert meter.parse_sizes("a: ² kB\nb: 7 kB\n") == {"b": 7 * 1024}


def test_stalls_are_percent_of_the_last_ten_seconds() -> None:
    text = "some avg10=12.50 avg60=1.00 avg300=0.10 total=5\nfull avg10=0.07 avg60=0.00 avg300=0.00 total=1\n"
    assert meter.parse_stalls(text) == {"some": 12.5, "full": 0.07}
    assert meter.parse_stalls("some avg10=999.99 avg60=0\nfull avg10=nan\nnone avg10=1.00 \n") == {"some": 100.0}


@given(st.text(max_size=200))
def test_parsers_take_any_text(text: str) -> None:
    meter.parse_sizes(text)
    meter.parse_counts(text)
    meter.parse_limit(text)
    meter.parse_stalls(text)
    meter.parse_memberships(text)
    meter.parse_mounts(text)


# --- trees ------------------------------------------------------------------------------------------


def test_without_cgroups_the_machine_binds(tree: Tree) -> None:
    assert oracle.memory_limit(tree.root) == 8 * GIB
    assert oracle.memory_available(tree.root) == 4 * GIB


def test_v2_the_tightest_group_on_the_way_up_binds(tree: Tree) -> None:
    tree.process("0::/system.slice/h2qd.service/daemon\n", V2_MOUNT)
    tree.group("system.slice/h2qd.service/daemon", max="max", high="max", current=GIB, stat="inactive_file 0")
    tree.group(
        "system.slice/h2qd.service",
        max=3 * GIB,
        high="max",
        current=2 * GIB,
        stat=f"anon 5\ninactive_file {GIB // 2}",
    )
    tree.group("system.slice", max=6 * GIB, current=3 * GIB, stat="inactive_file 0")
    assert oracle.memory_limit(tree.root) == 3 * GIB
    assert oracle.memory_available(tree.root) == GIB + GIB // 2


def test_v2_a_group_that_is_throttled_is_full(tree: Tree) -> None:
    tree.process("0::/a\n", V2_MOUNT)
    tree.group("a", max="max", high=2 * GIB, current=3 * GIB, stat="")
    assert oracle.memory_limit(tree.root) == 2 * GIB
    assert oracle.memory_available(tree.root) == 0


def test_v1_counts_the_groups_below(tree: Tree) -> None:
    tree.process("4:memory:/a/b\n0::/\n", V1_MOUNT)
    stat = f"inactive_file 0\ntotal_inactive_file {GIB // 2}"
    tree.group("memory/a", limit_in_bytes=2 * GIB, usage_in_bytes=GIB, stat=stat)
    tree.group("memory/a/b", limit_in_bytes=9223372036854771712, usage_in_bytes=GIB, stat=stat)
    tree.group("memory", limit_in_bytes=9223372036854771712, usage_in_bytes=GIB, stat=stat)
    assert oracle.memory_limit(tree.root) == 2 * GIB
    assert oracle.memory_available(tree.root) == GIB + GIB // 2


def test_a_container_that_sees_its_path_from_outside(tree: Tree) -> None:
    tree.process("0::/docker/abc\n", V2_MOUNT.replace("0:26 / ", "0:26 /docker/abc "))
    tree.group(".", max=GIB, current=0, stat="")
    assert oracle.memory_limit(tree.root) == GIB
    tree.process("0::/elsewhere\n", V2_MOUNT.replace("0:26 / ", "0:26 /docker/abc "))
    assert oracle.memory_limit(tree.root) == GIB


def test_another_process_has_its_own_groups(tree: Tree) -> None:
    tree.process("0::/a\n", V2_MOUNT)
    tree.process("0::/b\n", V2_MOUNT, pid="77")
    tree.group("a", max=GIB, current=0, stat="")
    tree.group("b", max=2 * GIB, current=0, stat="")
    assert oracle.memory_limit(tree.root) == GIB
    assert oracle.memory_limit(tree.root, 77) == 2 * GIB


def test_pss_else_rss_else_nothing(tree: Tree) -> None:
    tree.write("proc/5/smaps_rollup", "1-2 ---p 00000000 00:00 0 [rollup]\nRss: 40 kB\nPss: 12 kB\nPss_Anon: 3 kB\n")
    tree.write("proc/5/statm", "100 10 5 1 0 20 0")
    tree.write("proc/6/statm", "100 7 5 1 0 20 0")
    assert oracle.pss_bytes(5, tree.root) == 12 * 1024
    assert oracle.pss_bytes(6, tree.root) == 7 * PAGE
    assert oracle.pss_bytes(7, tree.root) == 0
    assert oracle.tree_pss([5, 6, 7], tree.root) == 12 * 1024 + 7 * PAGE


# --- here -------------------------------------------------------------------------------------------


def test_this_machine() -> None:
    limit, available = oracle.memory_limit(), oracle.memory_available()
    assert 0 < available <= limit


def test_this_process_sees_its_own_memory_grow() -> None:
    before_pss, before_rss = oracle.pss_bytes(os.getpid()), meter.rss_bytes(os.getpid())
    block = bytearray(b"x") * (64 * 2**20)
    assert oracle.pss_bytes(os.getpid()) - before_pss > 60 * 2**20
    assert meter.rss_bytes(os.getpid()) - before_rss > 60 * 2**20
    del block


def test_a_zombie_and_the_reaped_hold_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert oracle.pss_bytes(child.pid) == meter.rss_bytes(child.pid) == 0
        child.wait()
        assert oracle.pss_bytes(child.pid) == meter.rss_bytes(child.pid) == 0
