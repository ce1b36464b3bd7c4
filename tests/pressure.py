"""Memory for tests to run short of: a real cgroup with a limit, a process that eats, models of a known size.

A daemon that is started within a bounded group takes the group's limit for the device's memory, so running it short
costs nobody else anything. Sizes are bytes unless a name says otherwise. Needs a kernel that lets a group be made
here; tests that get none are skipped, with the reason.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from h2qd.runtime import cgroups, meter
from tests.harness import await_true, script

MIB = 2**20
KV_TOKEN_BYTES = 16 * 8 * (64 + 64) * 2
"""What a token of context takes in the models made here, at full precision."""

_EATER = """
import sys
held = []
print("ready", flush=True)
for line in sys.stdin:
    size = int(line)
    while held and sum(map(len, held)) > size:
        held.pop()
    rest = size - sum(map(len, held))
    while rest > 0:
        held.append(bytearray(b"\\1") * min(rest, 1 << 20))
        rest -= len(held[-1])
    print("done", flush=True)
"""


class Bounded:
    """A group with a limit. `folder` is where a daemon may live."""

    def __init__(self, home: cgroups.Home, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.group = home.make("bounded", limit_bytes)
        self.folder = self.group.folder
        with contextlib.suppress(OSError):  # v2: whoever runs out here is to die alone
            (self.folder / "memory.oom.group").write_text("0")

    def used_bytes(self) -> int:
        """What the group holds and would not give up at once."""
        used = next(f for n in ("memory.current", "memory.usage_in_bytes") if (f := self.folder / n).exists())
        return meter.held_bytes(int(used.read_text()), (self.folder / "memory.stat").read_text())

    def room(self, name: str, limit_bytes: int | None = None) -> "Room":
        """A group within this one; v2 has processes in the leaves only."""
        return Room(self.folder / name, limit_bytes)

    @contextlib.contextmanager
    def eater(self) -> Iterator["Eater"]:
        """A process that is none of the daemon's, in the same group."""
        room = self.room("eater")
        eater = Eater(self, room)
        try:
            yield eater
        finally:
            eater.process.kill()
            eater.process.communicate()
            room.close()

    def close(self) -> None:
        """Remove the group, and the groups that a killed daemon left in it."""
        for below in sorted(self.folder.rglob("*"), reverse=True):
            if below.is_dir():
                await_true(partial(_removed, below), f"{below} is empty")


class Room:
    """A group for a process."""

    def __init__(self, folder: Path, limit_bytes: int | None) -> None:
        self._folder = folder
        folder.mkdir()
        if limit_bytes is not None:
            _limit_file(folder).write_text(str(limit_bytes))

    def enter(self, pid: int) -> None:
        """Move a process in."""
        (self._folder / "cgroup.procs").write_text(str(pid))

    def close(self) -> None:
        """Remove the group, once its processes are gone."""
        await_true(lambda: _removed(self._folder), f"{self._folder} is empty")


class Eater:
    """Eats as it is told to: `eat` returns when the memory is taken, or given back."""

    def __init__(self, bounded: Bounded, room: Room) -> None:
        self._bounded = bounded
        self.process = subprocess.Popen(
            [sys.executable, "-c", _EATER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()
        room.enter(self.process.pid)
        self.eaten_bytes = 0

    def eat(self, size_bytes: int) -> None:
        """Hold so much in all."""
        assert self.process.stdin is not None
        self.eaten_bytes = max(0, size_bytes)
        self.process.stdin.write(f"{self.eaten_bytes}\n")
        self.process.stdin.flush()
        self._answer()

    def fill_to(self, share: float) -> None:
        """Eat, or give back, until the group is full to this share."""
        wanted = round(share * self._bounded.limit_bytes)
        self.eat(self.eaten_bytes + wanted - self._bounded.used_bytes())

    def _answer(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline(), "the eater was killed"


@contextlib.contextmanager
def bounded(limit_bytes: int) -> Iterator[Bounded]:
    """A group of one's own, in which there is so much memory and no more."""
    try:
        home = cgroups.open_home(Path("/"), os.getpid())
    except cgroups.NoGroupsError as error:
        pytest.skip(str(error))
    with contextlib.ExitStack() as undo:
        undo.callback(home.close)
        group = Bounded(home, limit_bytes)
        undo.callback(home.remove, group.group)
        undo.callback(group.close)
        yield group


def model(size_bytes: int, *, context_bytes: int = 0, **fields: Any) -> dict[str, Any]:
    """A script whose facts promise what it takes: `size_bytes` of weights, and at the end of the load a context."""
    facts = {
        "format": "fake",
        "architecture": "fake",
        "context_length": 8192,
        "tensor_bytes": size_bytes + context_bytes,
    }
    return {"facts": facts, "memory_bytes": size_bytes, "context_bytes": context_bytes, **fields}


def with_cache(script: Mapping[str, Any]) -> dict[str, Any]:
    """The same model with a KV cache that its plan counts, `KV_TOKEN_BYTES` a token."""
    cache = {"layers": 16, "kv_heads": [8], "heads": [8], "key_length": 64, "value_length": 64, "embedding": 64}
    return {**script, "facts": {**script["facts"], **cache}}


def write_config(
    folder: Path,
    models: Mapping[str, Mapping[str, Any]],
    extra: str = "",
    keys: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """A configuration with scripts of `models`; `keys` says more of some of them, such as a priority."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["log: {level: debug}", extra, "models:"]
    for name, fields in models.items():
        said = {"path": script(folder, name, **fields), "backend": "fake", **(keys or {}).get(name, {})}
        lines.append(f"  {name}: {{{', '.join(f'{key}: {value}' for key, value in said.items())}}}")
    config = folder / "h2qd.yaml"
    config.write_text("\n".join(lines) + "\n")
    return config


def tree_bytes(root: psutil.Process) -> tuple[dict[int, int], bool]:
    """The PSS of a process and all below it, read anew; and whether all of them held it at one and the same time.

    They did when nobody came or went until the last one was read: what is still there has held its part all along.
    """
    pids = _pids(root)
    sizes = {pid: _pss(pid) for pid in pids}
    same = _pids(root) == pids and all(_pss(pid) for pid in pids)
    return sizes, same


def _pids(root: psutil.Process) -> set[int]:
    return {root.pid, *(child.pid for child in root.children(recursive=True))}


def _pss(pid: int) -> int:
    """A process's share of memory; 0 when it is gone."""
    try:
        lines = Path("/proc", str(pid), "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def _limit_file(group: Path) -> Path:
    names = ("memory.max", "memory.limit_in_bytes")
    return next(file for name in names if (file := group / name).exists())


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
