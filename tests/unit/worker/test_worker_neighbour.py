"""How many threads find a free CPU, by made-up readings; what the kernel counts; and who is told."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from h2qd.worker import processors
from h2qd.worker.crew import Crew
from h2qd.worker.neighbour import PERIOD_S, ROOMY_PERIODS, Neighbour, Reading

START = Reading(100.0, 50.0, 7.0, 300.0)


def period(cpus: int, threads: int, others: float) -> Reading:
    """What is counted from START on beside `others` busy threads, where all share the CPUs evenly."""
    share = min(1.0, cpus / (threads + others))
    idle = max(0.0, cpus - threads - others)
    at_s, ran_s, waited_s, idle_s = START
    return Reading(
        at_s + PERIOD_S,
        ran_s + PERIOD_S * threads * share,
        waited_s + PERIOD_S * threads * (1 - share),
        idle_s + PERIOD_S * idle,
    )


def after(neighbour: Neighbour, cpus: int, others: float, periods: int = 1) -> int:
    for _ in range(periods):
        neighbour.judge(START, period(cpus, neighbour.threads, others))
    return neighbour.threads


@pytest.mark.parametrize(
    ("cpus", "others", "threads"),
    [(2, 0, 2), (2, 1, 1), (2, 2, 1), (4, 1, 3), (4, 2, 2), (4, 4, 1), (4, 9, 1), (16, 3, 13), (2, 0.5, 2)],
)
def test_as_many_as_find_a_free_cpu_at_once(cpus: int, others: float, threads: int) -> None:
    assert after(Neighbour(cpus, cpus), cpus, others) == threads


@pytest.mark.parametrize(("cpus", "others"), [(2, 1), (2, 2), (4, 1), (4, 3), (8, 20)])
def test_the_number_rests_while_the_others_stay(cpus: int, others: float) -> None:
    neighbour = Neighbour(cpus, cpus)
    first = after(neighbour, cpus, others)
    assert [after(neighbour, cpus, others) for _ in range(20)] == [first] * 20


def test_all_come_back_some_time_after_the_others_left() -> None:
    neighbour = Neighbour(4, 4)
    assert after(neighbour, 4, 4) == 1
    assert after(neighbour, 4, 0, ROOMY_PERIODS - 1) == 1
    assert after(neighbour, 4, 0) == 4


def test_room_that_comes_and_goes_is_none() -> None:
    neighbour = Neighbour(2, 2)
    after(neighbour, 2, 2)
    for _ in range(10):
        assert after(neighbour, 2, 0, ROOMY_PERIODS - 1) == 1
        assert after(neighbour, 2, 1) == 1


def test_never_more_than_the_limit() -> None:
    neighbour = Neighbour(2, 8)
    assert after(neighbour, 8, 6) == 2
    assert after(neighbour, 8, 8) == 1
    assert after(neighbour, 8, 0, 3 * ROOMY_PERIODS) == 2


@pytest.mark.parametrize(
    "reading",
    [
        START,
        START._replace(at_s=START.at_s + PERIOD_S),
        Reading(START.at_s + PERIOD_S, START.ran_s + 0.02, START.waited_s + 0.05, START.idle_s),
        Reading(START.at_s + PERIOD_S, START.ran_s - 40, START.waited_s - 6, START.idle_s),
        Reading(START.at_s + PERIOD_S, START.ran_s + 1, START.waited_s - 6, START.idle_s),
    ],
    ids=["no time passed", "rested", "mostly rested", "threads ended", "a thread ended that had waited"],
)
def test_what_tells_nothing_changes_nothing(reading: Reading) -> None:
    neighbour = Neighbour(2, 2)
    assert neighbour.judge(START, reading) == 2


# --- what the kernel counts ---------------------------------------------------------------------------


def proc(folder: Path, tasks: dict[int, str], stat: str) -> Path:
    for task, text in tasks.items():
        (folder / "self" / "task" / str(task)).mkdir(parents=True)
        if text:
            (folder / "self" / "task" / str(task) / "schedstat").write_text(text, encoding="ascii")
    (folder / "stat").write_text(stat, encoding="ascii")
    return folder


STAT = "cpu  9 9 9 9 9 9 9\ncpu0 1 2 3 400 50 6 7\ncpu1 1 2 3 1000 0 6 7\ncpu10 0 0 0 70000 0 0 0\nintr 5 6 7\n"


def test_counts_of_all_threads_and_of_the_cpus_asked_for(tmp_path: Path) -> None:
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    tasks = {7: "2000000000 500000000 3\n", 8: "1000000000 250000000 4\n", 9: ""}
    folder = proc(tmp_path, tasks, STAT)
    reading = processors.read({0, 1}, folder)
    assert reading is not None
    assert reading[1:] == pytest.approx((3.0, 0.75, 1450 * tick_s))
    reading = processors.read({10}, folder)
    assert reading is not None
    assert reading.idle_s == pytest.approx(70000 * tick_s)


@pytest.mark.parametrize(
    ("counts", "stat"),
    [
        ("", STAT),
        ("0 0 0\n", STAT),
        ("12\n", STAT),
        ("many few 1\n", STAT),
        ("1 1 1\n", ""),
        ("1 1 1\n", "cpu0 1 2\n"),
        ("1 1 1\n", "cpu0 1 2 3 x 5\n"),
        ("1 1 1\n", STAT.replace("cpu1 ", "cpu2 ")),
        ("1 1 1\n", "cpu0 \u00ff"),
    ],
)
def test_a_kernel_that_counts_otherwise_is_not_asked(tmp_path: Path, counts: str, stat: str) -> None:
    folder = proc(tmp_path, {1: counts}, "")
    (folder / "stat").write_bytes(stat.encode("latin-1"))
    assert processors.read({0, 1}, folder) is None
    assert processors.read({0, 1}, folder / "nowhere") is None


def test_this_kernel_counts() -> None:
    cpus = os.sched_getaffinity(0)
    before = processors.read(cpus)
    if before is None:
        pytest.skip("this kernel does not count")
    until_s = time.thread_time() + 0.1
    while time.thread_time() < until_s:
        pass
    later = processors.read(cpus)
    assert later is not None
    assert later.ran_s - before.ran_s >= 0.09
    assert later.idle_s >= before.idle_s
    assert later.waited_s >= before.waited_s


# --- who is told ----------------------------------------------------------------------------------------


def readings(*told: Reading | None) -> Callable[[set[int]], Reading | None]:
    """One after the other, all of them long ago."""
    rest = iter(told)
    return lambda _cpus: next(rest)


def crowded(until_s: float) -> tuple[Reading, Reading]:
    """Two threads or more that waited half of the time, from 0 on."""
    half_s = len(os.sched_getaffinity(0)) * until_s / 2
    return Reading(0.0, 1.0, 0.0, 0.0), Reading(until_s, 1.0 + half_s, half_s, 0.0)


def crew(
    assigned: list[int], *told: Reading | None, limit: int | None = None, adapts: bool = True
) -> tuple[Crew, int]:
    limit = limit or max(2, len(os.sched_getaffinity(0)))
    return Crew(limit, assigned.append, adapts=adapts, read=readings(*told)), limit


def test_a_pass_has_fewer_threads_beside_others() -> None:
    assigned: list[int] = []
    before, later = crowded(time.monotonic() + 3600)  # so that nobody is asked a third time
    ours, _ = crew(assigned, before, later)
    for _ in range(3):
        ours.muster()
    assert assigned == [1]


def test_a_kernel_that_stops_counting_leaves_all_threads() -> None:
    assigned: list[int] = []
    before, later = crowded(1.0)
    ours, limit = crew(assigned, before, later, None)
    ours.muster()
    ours.muster()
    ours.muster()
    assert assigned == [1, limit]


@pytest.mark.parametrize(("limit", "adapts", "told"), [(4, False, START), (1, True, START), (4, True, None)])
def test_what_cannot_change_asks_no_kernel(limit: int, adapts: bool, told: Reading | None) -> None:
    assigned: list[int] = []
    ours, _ = crew(assigned, told, limit=limit, adapts=adapts)
    for _ in range(3):
        ours.muster()
    assert assigned == []
