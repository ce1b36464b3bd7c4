"""How many threads a load gets."""

import os
from pathlib import Path

from h2qd.worker.threads import THREADS_MAX, physical_cores, thread_count


def siblings(sysfs: Path, *lists: str) -> Path:
    for cpu, text in enumerate(lists):
        folder = sysfs / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{text}\n", encoding="ascii")
    return sysfs


def test_two_threads_of_a_core_count_once(tmp_path: Path) -> None:
    sysfs = siblings(tmp_path, "0,2", "1,3", "0,2", "1,3")
    assert physical_cores({0, 1, 2, 3}, sysfs) == 2
    assert physical_cores({0, 2}, sysfs) == 1
    assert physical_cores({0, 1}, sysfs) == 2


def test_without_a_topology_every_cpu_counts(tmp_path: Path) -> None:
    assert physical_cores({0, 3, 5}, tmp_path) == 3


def test_what_is_asked_wins_within_bounds() -> None:
    assert thread_count(3) == 3
    assert thread_count(10**6) == THREADS_MAX
    assert 1 <= thread_count(0) <= len(os.sched_getaffinity(0))
    assert thread_count(-1) == thread_count(0)
