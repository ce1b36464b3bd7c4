"""Who pauses for whom, and who goes on first."""

from typing import NamedTuple

from h2qd.worker.line import crowding, gives_way, head


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


def test_who_waits_counts_like_who_decodes_unless_of_less_priority() -> None:
    newcomers = [One(1, arrived) for arrived in range(7)]
    assert crowding(newcomers, [One(1, 0)]) == 7
    assert crowding(newcomers[:1], [One(1, 0), One(1, 1)]) == 0.5
    assert crowding([*newcomers, One(0, 9)], [One(0, 0), One(1, 1)]) == 3.5
    assert crowding([One(0, 8), One(0, 9)], [One(1, 0)]) == 0
