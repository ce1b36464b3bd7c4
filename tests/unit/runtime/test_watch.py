"""The watch over memory: from a kernel's words to the core's events, on trees of our own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from h2qd.config.schema import Memory
from h2qd.config.units import Amount
from h2qd.core.events import Event, LimitRead, MemoryRead
from h2qd.runtime.readings import Gauge
from h2qd.runtime.watch import Watch
from tests.unit.runtime.kernel_tree import Tree

MIB = 2**20
GIB = 2**30


def meminfo(available_bytes: int, total_bytes: int = 8 * GIB) -> str:
    return f"MemTotal: {total_bytes // 1024} kB\nMemAvailable: {available_bytes // 1024} kB\n"


class Desk:
    """A watch over a tree, its clock, and what it posted."""

    def __init__(self, tree: Tree, memory: Memory) -> None:
        self.tree = tree
        self.now = 100.0
        self.posted: list[Event] = []
        self.gauge = Gauge(tree.root)
        self.watch = Watch(self.gauge, memory, self.posted.append, lambda: self.now)

    def look(self, available_bytes: int, *, stalled: bool = False) -> list[Event]:
        """The events of one more reading."""
        self.tree.write("proc/meminfo", meminfo(available_bytes))
        self.now += 1.0
        self.posted.clear()
        self.watch.look(stalled=stalled)
        return list(self.posted)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def desk(tree: Tree) -> Iterator[Desk]:
    desk = Desk(tree, Memory())
    yield desk
    desk.gauge.close()


def test_a_reading_tells_the_limit_once_and_the_memory_each_time(desk: Desk) -> None:
    limit = 8 * GIB * 80 // 100
    assert desk.look(4 * GIB) == [LimitRead(101.0, limit), MemoryRead(101.0, 0.5, 4 * GIB)]
    assert desk.look(2 * GIB) == [MemoryRead(102.0, 0.75, 2 * GIB)]


def test_what_servers_here_hold_for_others_is_in_each_reading(desk: Desk) -> None:
    desk.watch = Watch(desk.gauge, Memory(), desk.posted.append, lambda: desk.now, lambda: GIB)
    assert desk.look(4 * GIB)[-1] == MemoryRead(101.0, 0.5, 4 * GIB, foreign_bytes=GIB)


def test_the_rest_leaves_its_room_to_nobody(tree: Tree) -> None:
    memory = Memory(model_limit=Amount(percent=100), working_bytes=GIB, safety_buffer_bytes=GIB)
    desk = Desk(tree, memory)
    desk.look(8 * GIB)
    assert desk.watch.limits.models_bytes == 6 * GIB
    assert desk.watch.limits.fault == ""
    desk.gauge.close()


def test_a_stall_is_told_by_the_trigger_by_the_share_and_by_swap(desk: Desk) -> None:
    def stalled() -> bool:
        event = desk.look(GIB)[-1]
        assert isinstance(event, MemoryRead)
        return event.stalled

    assert not stalled()
    event = desk.look(GIB, stalled=True)[-1]
    assert isinstance(event, MemoryRead)
    assert event.stalled
    some = "some avg10={:.2f} avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
    desk.tree.write("proc/pressure/memory", some.format(9.9))
    assert not stalled()
    desk.tree.write("proc/pressure/memory", some.format(10.0))
    assert stalled()
    desk.tree.write("proc/pressure/memory", some.format(0.0))
    desk.tree.write("proc/vmstat", "pswpin 0\n")
    assert not stalled()
    desk.tree.write("proc/vmstat", f"pswpin {20 * MIB // 4096}\n")
    assert stalled()


def test_a_reading_that_fails_says_nothing(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    Path(tree.root, "proc/meminfo").unlink()
    desk = Desk(tree, Memory())
    desk.watch.look()
    assert desk.posted == []
    desk.gauge.close()


def test_a_device_with_less_than_promised_is_complained_of(desk: Desk) -> None:
    desk.look(8 * GIB)
    assert list(desk.watch.complaints(0)) == []
    desk.look(2 * GIB)
    (complaint,) = desk.watch.complaints(0)
    assert complaint == "the device has 1.75 GiB for further models, of the 6.40 GiB that the budget promises"
    assert list(desk.watch.complaints(5 * GIB)) == [], "what models hold already is not to be found again"


def test_a_budget_that_the_device_cannot_hold_is_complained_of(tree: Tree) -> None:
    desk = Desk(tree, Memory(model_limit=Amount(size_bytes=9 * GIB), safety_buffer_bytes=9 * GIB))
    desk.look(8 * GIB)
    complaints = list(desk.watch.complaints(0))
    assert complaints[0].startswith("models, working memory and the safety buffer take ")
    assert complaints[1] == (
        "models get 0.00 GiB of the 9.00 GiB of memory.model_limit: 8.00 GiB are there for everything"
    )
    desk.gauge.close()
