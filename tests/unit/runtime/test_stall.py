"""The trigger on memory stalls: the real kernel, a real group, and processes that really wait for memory."""

import asyncio
import contextlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from h2qd.runtime import cgroups, meter
from h2qd.runtime.stall import StallTrigger

MIB = 2**20
PRESSURE = Path("/proc/pressure/memory")
SMALL_STALL_US = 20_000

THRASH = """
import os, sys
sys.stdin.readline()
fd = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # those pages are charged to whoever wrote them
while True:
    for offset in range(0, os.fstat(fd).st_size, 65536):
        os.pread(fd, 65536, offset)
"""


def nothing() -> None:
    """Nobody wants to know."""


def open_files() -> list[str]:
    return [file.name for file in Path("/proc/self/fd").iterdir()]


def skip_without(trigger: StallTrigger) -> None:
    if not trigger.available:
        pytest.skip(trigger.trouble)


def stalled_us(file: Path) -> int:
    return int(file.read_text().split("total=")[1].split()[0])


def v2_folder() -> Path:
    """A group of cgroup v2 of our own, which needs no controller to have a pressure file."""
    own = cgroups._own_group(Path("/"), cgroups.V2.mount)
    if own is None:
        pytest.skip("no cgroup v2 is mounted")
    folder = own / f"h2qd-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"cannot make a group: {error}")
    if not (folder / "memory.pressure").exists():
        folder.rmdir()
        pytest.skip("the kernel reports no pressure of groups")
    return folder


@contextlib.contextmanager
def thrashing(file: Path) -> Iterator[tuple[Path, Callable[[], int]]]:
    """The pressure file of a process that reads `file` again and again in a group too small for it; and its start."""
    try:
        home = cgroups.open_home(Path("/"), os.getpid())
    except cgroups.NoGroupsError as error:
        pytest.skip(str(error))
    with contextlib.ExitStack() as undo:
        undo.callback(home.close)
        group = home.make("thrash", 16 * MIB)
        undo.callback(home.remove, group)
        file.write_bytes(os.urandom(MIB) * 64)
        with file.open("rb") as written:
            os.fsync(written.fileno())
        child = subprocess.Popen([sys.executable, "-c", THRASH, str(file)], stdin=subprocess.PIPE)
        undo.callback(child.communicate)
        undo.callback(child.kill)
        group.attach(child.pid)
        own = group.folder / "memory.pressure"

        def start() -> int:
            assert child.stdin is not None
            return os.write(child.stdin.fileno(), b"\n")

        yield (own if own.exists() else PRESSURE), start


@pytest.mark.skipif(not PRESSURE.exists(), reason="the kernel reports no memory pressure (PSI)")
def test_a_real_stall(tmp_path: Path) -> None:
    async def scenario() -> None:
        with thrashing(tmp_path / "file") as (pressure, start):
            loop = asyncio.get_running_loop()
            told: list[float] = []
            twice = asyncio.Event()

            def on_stall() -> None:
                told.append(time.monotonic())
                if len(told) == 2:
                    twice.set()

            trigger = StallTrigger(loop, [pressure], on_stall, SMALL_STALL_US)
            skip_without(trigger)
            for _ in range(10):
                await asyncio.sleep(0)
            assert told == [], "a file that could be read is no stall"
            before_us = stalled_us(pressure)
            start()
            began_s = time.monotonic()
            try:
                await asyncio.wait_for(twice.wait(), 20)
            except TimeoutError:
                if stalled_us(pressure) - before_us < 100 * SMALL_STALL_US:
                    pytest.skip("no memory pressure could be made here")
                raise
            finally:
                trigger.close()
            print(f"{pressure}, window {trigger.window_us} us: told after {told[0] - began_s:.2f} s")
            assert told[1] - told[0] > 0.9 * trigger.window_us / 1e6, "once a window"
            assert told[0] - began_s < 10

    asyncio.run(scenario())


@pytest.mark.skipif(not PRESSURE.exists(), reason="the kernel reports no memory pressure (PSI)")
def test_one_that_is_closed_says_no_more_and_holds_nothing() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        before = open_files()
        trigger = StallTrigger(loop, [PRESSURE], nothing)
        skip_without(trigger)
        assert (trigger.path, trigger.trouble) == (PRESSURE, "")
        assert trigger.window_us in (1_000_000, 2_000_000)
        assert len(open_files()) == len(before) + 2
        trigger.close()
        trigger.close()
        assert not trigger.available
        assert open_files() == before

    asyncio.run(scenario())


def test_a_group_that_goes_ends_its_trigger() -> None:
    ended = asyncio.Event()

    class Watched(StallTrigger):
        def close(self) -> None:
            super().close()
            ended.set()

    async def scenario() -> None:
        folder = v2_folder()
        stalls: list[float] = []
        try:
            trigger = Watched(asyncio.get_running_loop(), [folder / "memory.pressure"], lambda: stalls.append(0))
            skip_without(trigger)
        finally:
            folder.rmdir()
        await asyncio.wait_for(ended.wait(), 10)
        assert not trigger.available
        assert trigger.trouble == f"{folder / 'memory.pressure'}: its group is gone"
        assert stalls == []

    asyncio.run(scenario())


@pytest.mark.skipif(not PRESSURE.exists(), reason="the kernel reports no memory pressure (PSI)")
def test_the_first_file_that_takes_a_trigger(tmp_path: Path) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        trigger = StallTrigger(loop, [tmp_path / "none", PRESSURE], nothing)
        skip_without(trigger)
        assert trigger.path == PRESSURE
        trigger.close()

    asyncio.run(scenario())


def test_why_there_is_none(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.write_text("")

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        before = open_files()
        none = StallTrigger(loop, [], nothing)
        absent = StallTrigger(loop, [tmp_path / "none"], nothing)
        no_trigger = StallTrigger(loop, [ordinary], nothing)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            full = StallTrigger(loop, [ordinary], nothing)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for trigger in (none, absent, no_trigger, full):
            assert not trigger.available
            trigger.close()
        assert none.trouble == "no pressure file is known"
        assert absent.trouble == f"{tmp_path / 'none'}: the kernel reports no pressure (boot with psi=1)"
        assert no_trigger.trouble.startswith(f"{ordinary}: ")
        assert full.trouble == f"{ordinary}: Too many open files"
        assert open_files() == before

    asyncio.run(scenario())


def test_what_the_kernel_says_of_this_machine_can_be_read() -> None:
    if not PRESSURE.exists():
        pytest.skip("the kernel reports no memory pressure (PSI)")
    assert meter.parse_stalls(PRESSURE.read_text()).keys() == {"some", "full"}
