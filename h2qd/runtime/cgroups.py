"""Control groups of our own: found, made, filled and removed; cgroup v2 and v1. Sizes in bytes.

    the process's own group      as systemd, a container or a shell gave it
      h2qd-PID                   this daemon's home
        supervisor               v2 only: the daemon and the zygote
        worker-1, worker-2, …    one process each, with a limit

cgroup v2 gives limits only to groups below one that holds no process itself: so the daemon moves into a leaf first,
which fails where others share its group (a login session); `Delegate=yes` gives it one of its own. It knows the
kernel's files, not what limits are for; called by `containment` only. Needs no more than a few writes to kernel
files, well under a millisecond each. Invariant: nothing of a living daemon is removed; homes of dead ones are.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from h2qd.runtime.meter import parse_counts, parse_limit, parse_memberships, parse_mounts

_HOME = "h2qd-"
_LEAF = "supervisor"


class NoGroupsError(Exception):
    """No groups can be made here; the text says why."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a version calls things. Counters are (file, name in it), "" for a file that is one number.

    `mount` is the key of the hierarchy in `parse_mounts` and `parse_memberships`; `controllers` are switched on for
    inner groups (v2), the first because limits need it, the others if they can be. `wishes` are settings that old
    kernels lack and a worker can do without: no swap, since a worker that outgrows its plan would take the device's
    storage before it dies; the end of all of its processes, not of one; less of the processor than the supervisor.
    """

    kind: str
    mount: str
    limit: str
    peak: str
    kills: tuple[str, str]
    overruns: tuple[str, str]
    wishes: tuple[tuple[str, str], ...]
    controllers: tuple[str, ...] = ()


V2 = Dialect(
    kind="v2",
    mount="",
    limit="memory.max",
    peak="memory.peak",
    kills=("memory.events", "oom_kill"),
    overruns=("memory.events", "oom"),
    wishes=(("memory.swap.max", "0"), ("memory.oom.group", "1"), ("cpu.weight", "25")),
    controllers=("memory", "cpu"),
)

V1 = Dialect(
    kind="v1",
    mount="memory",
    limit="memory.limit_in_bytes",
    peak="memory.max_usage_in_bytes",
    kills=("memory.oom_control", "oom_kill"),
    overruns=("memory.failcnt", ""),
    wishes=(("memory.swappiness", "0"),),
)


class Group:
    """A group with a memory limit. Its figures are 0 where the kernel does not tell them."""

    def __init__(self, folder: Path, dialect: Dialect) -> None:
        self.folder = folder
        self._dialect = dialect

    def limit(self, limit_bytes: int) -> None:
        """Set another limit. Raises `OSError`, also when the group holds more than that and cannot give it up."""
        _write(self.folder / self._dialect.limit, limit_bytes)

    def attach(self, pid: int) -> None:
        """Move a process in; what it holds so far stays charged where it was. Raises `OSError`."""
        _write(self.folder / "cgroup.procs", pid)

    @property
    def oom_kills(self) -> int:
        """Processes of the group that the kernel killed because memory ran out, in the group or around it.

        v1 before Linux 4.13 does not count them: there this is how often the limit was reached.
        """
        kills = self._count(self._dialect.kills)
        return self.overruns if kills is None else kills

    @property
    def overruns(self) -> int:
        """How often the group's own limit was in the way; on v1 also when giving up page cache was enough."""
        return self._count(self._dialect.overruns) or 0

    @property
    def peak_bytes(self) -> int:
        """The most that the group ever held, page cache included. Kept by v1, and by v2 since Linux 5.19."""
        return self._count((self._dialect.peak, "")) or 0

    def _count(self, counter: tuple[str, str]) -> int | None:
        file, name = counter
        text = _text(self.folder / file)
        return parse_counts(text).get(name) if name else parse_limit(text)


class Home:
    """A daemon's group, and in it the groups that it makes. Raises `OSError` when it cannot be made.

    On v2 making it moves the daemon `pid` into it, and with it whatever it starts from then on.
    """

    def __init__(self, own: Path, dialect: Dialect, root: Path, pid: int) -> None:
        self.kind = dialect.kind
        self._own = own
        self._dialect = dialect
        self._processes = root / "proc"
        self._folder = own / f"{_HOME}{pid}"
        self._enabled: list[tuple[Path, str]] = []
        self._busy: list[Path] = []
        _remove(self._folder)  # in a container, every daemon may get the same pid
        self._sweep()
        self._folder.mkdir(exist_ok=True)
        if dialect.controllers:
            try:
                self._enter(pid)
            except OSError:
                self.close()
                raise

    def make(self, name: str, limit_bytes: int) -> Group:
        """A new, empty group. Raises `OSError`."""
        self._sweep()
        folder = self._folder / name
        folder.mkdir(parents=True)
        try:
            _write(folder / self._dialect.limit, limit_bytes)
        except OSError:
            _removed(folder)
            raise
        for file, value in self._dialect.wishes:
            with contextlib.suppress(OSError):
                _write(folder / file, value)
        return Group(folder, self._dialect)

    def remove(self, group: Group) -> None:
        """Remove a group whose processes are gone, now, or with the next one if some are still on their way out."""
        self._busy.append(group.folder)
        self._sweep()

    def close(self) -> None:
        """Undo everything that can be undone; the rest is left to the next daemon here."""
        self._sweep()
        for group, controller in reversed(self._enabled):
            with contextlib.suppress(OSError):
                _write(group / "cgroup.subtree_control", f"-{controller}")
        for pid in _text(self._folder / _LEAF / "cgroup.procs").split():  # v2; the zygote may not be gone yet
            with contextlib.suppress(OSError):
                _write(self._own / "cgroup.procs", pid)
        _remove(self._folder)

    def _enter(self, pid: int) -> None:
        leaf = self._folder / _LEAF
        leaf.mkdir(exist_ok=True)
        _write(leaf / "cgroup.procs", pid)
        needed, *wished = self._dialect.controllers
        for group in (self._own, self._folder):
            self._enable(group, needed)
            for controller in wished:
                with contextlib.suppress(OSError):
                    self._enable(group, controller)

    def _enable(self, group: Path, controller: str) -> None:
        """Have the groups below `group` obey a controller; remembered only if that is our doing."""
        control = group / "cgroup.subtree_control"
        if controller not in _text(control).split():
            _write(control, f"+{controller}")
            self._enabled.append((group, controller))

    def _sweep(self) -> None:
        """Remove what was busy, and the homes of daemons that are dead."""
        self._busy = [folder for folder in self._busy if not _removed(folder)]
        for home in self._own.glob(f"{_HOME}*"):
            pid = home.name.removeprefix(_HOME)
            if pid.isdigit() and not (self._processes / pid).exists():
                _remove(home)


def open_home(root: Path, pid: int) -> Home:
    """A home for the daemon `pid` in the group of this process. Raises `NoGroupsError`."""
    reasons = []
    for dialect in (V2, V1):
        own = _own_group(root, dialect.mount)
        if own is None:
            reasons.append(f"no cgroup {dialect.kind} with a memory controller is mounted")
        elif dialect.controllers and dialect.controllers[0] not in _text(own / "cgroup.controllers").split():
            reasons.append(f"cgroup {dialect.kind} has no memory controller here")
        else:
            try:
                return Home(own, dialect, root, pid)
            except OSError as error:
                reasons.append(f"cgroup {dialect.kind}: {error.strerror}")
    raise NoGroupsError("; ".join(reasons))


def _own_group(root: Path, mount: str) -> Path | None:
    """The folder of this process's group in a hierarchy, or None where there is no such hierarchy."""
    process = root / "proc" / "self"
    path = parse_memberships(_text(process / "cgroup")).get(mount)
    place = parse_mounts(_text(process / "mountinfo")).get(mount)
    if path is None or place is None:
        return None
    top, point = place
    inside = os.path.relpath(path, top)
    folder = root / point.lstrip("/")
    # A container may see its path from outside of its own mount: then the mount point is its group.
    return folder if inside.startswith("..") else folder / inside


def _remove(home: Path) -> None:
    """Remove a home and the groups in it, as far as they are empty."""
    with contextlib.suppress(OSError):
        for group in [entry for entry in home.iterdir() if entry.is_dir()]:
            _removed(group)
    _removed(home)


def _removed(group: Path) -> bool:
    """Whether a group is gone now. The kernel refuses to remove one that holds processes or groups."""
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _write(file: Path, value: str | int) -> None:
    """Tell the kernel something. Raises `OSError` when it refuses."""
    file.write_text(str(value), "ascii")


def _text(file: Path) -> str:
    """The content of a kernel file; "" when it cannot be read."""
    try:
        return file.read_text("utf-8", "surrogateescape")
    except OSError:
        return ""
