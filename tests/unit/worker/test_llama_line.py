"""Who pauses for whom, and who goes on first."""

from typing import NamedTuple

from h2qd.worker.llama.line import gives_way, head


class One(NamedTuple):
    priority: int
    arrived: int


def test_the_oldest_of_the_highest_priority_goes_on() -> None:
    assert head([]) is None
    assert head([One(1, 5), One(2, 9), One(2, 7), One(0, 1)]) == One(2, 7)


def test_the_youngest_of_the_lowest_priority_gives_way() -> None:
    running = [One(1, 1), One(0, 2), One(0, 3), One(2, 4)]
    assert gives_way(running, One(2, 9)) == One(0, 3)
    assert gives_way(running, One(1, 9)) == One(0, 3)


def test_nobody_gives_way_to_an_equal() -> None:
    running = [One(1, 1), One(2, 2)]
    assert gives_way(running, One(1, 9)) is None
    assert gives_way([], One(2, 9)) is None
    assert gives_way(running, One(2, 9)) == One(1, 1)
