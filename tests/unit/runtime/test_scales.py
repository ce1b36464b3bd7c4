"""What workers hold: shared out so that the parts add up to what the tree holds more than when it was idle."""

import os
from pathlib import Path

from h2qd.runtime.scales import Weight, Weights, weight
from tests.unit.runtime.kernel_tree import Tree

MIB = 2**20
ZYGOTE, ONE, TWO = 10, 11, 12


def weighed(*, zygote: int, shared: int = 0, **workers: Weight) -> Weights:
    processes = {ZYGOTE: Weight(zygote, zygote)} | {int(pid[1:]): each for pid, each in workers.items()}
    return Weights(processes, ZYGOTE, shared, 0.01)


def test_parts_add_up_to_what_the_tree_holds_more() -> None:
    idle = 36 * MIB
    shared = (idle - 12 * MIB) // 2  # three processes share the zygote's pages: two thirds of its PSS are gone
    weights = weighed(
        zygote=12 * MIB, shared=shared, p11=Weight(112 * MIB, 62 * MIB), p12=Weight(212 * MIB, 12 * MIB)
    )
    assert weights.held_bytes(ONE) == 100 * MIB
    assert weights.held_bytes(TWO) == 200 * MIB
    assert weights.held_bytes(ONE) + weights.held_bytes(TWO) == weights.tree_bytes - idle
    assert weights.kept_bytes(ONE) == 50 * MIB
    assert weights.kept_bytes(TWO) == 0
    assert weights.file_bytes(TWO) == 200 * MIB


def test_who_is_gone_holds_nothing() -> None:
    weights = weighed(zygote=36 * MIB)
    for pid in (None, ONE):
        assert (weights.held_bytes(pid), weights.kept_bytes(pid), weights.file_bytes(pid)) == (0, 0, 0)
    assert Weights().tree_bytes == 0


def test_what_comes_back_is_not_what_others_took_meanwhile() -> None:
    before = weighed(zygote=10 * MIB, p11=Weight(100 * MIB, 0), p12=Weight(50 * MIB, 0))
    after = weighed(zygote=12 * MIB, p12=Weight(70 * MIB, 0))
    assert after.freed_bytes(ONE, before) == 98 * MIB


def test_the_kernels_words(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.write("proc/7/smaps_rollup", "00-ff ---p 00 00:00 0 [rollup]\nRss: 900 kB\nPss: 500 kB\nPss_Anon: 200 kB\n")
    assert weight(7, tree.root) == Weight(500 * 1024, 200 * 1024)
    tree.write("proc/8/statm", "1000 100 0 0 0 0 0\n")
    size = 100 * os.sysconf("SC_PAGE_SIZE")
    assert weight(8, tree.root) == Weight(size, size), "pages that may not be looked at count in full"
    assert weight(9, tree.root) == Weight()


def test_this_very_process() -> None:
    own = weight(os.getpid())
    assert 0 < own.anonymous_bytes <= own.pss_bytes
