"""Memory read the plain way, file by file: a second opinion, to which tests and benchmarks hold the readings."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from h2qd.runtime.meter import group_folders, held_bytes, parse_limit, parse_sizes, rss_bytes


def memory_limit(root: str = "/", pid: int | None = None) -> int:
    """All the memory that `pid` (None: this process) could ever get: the machine's, or less by its cgroups."""
    total = parse_sizes(_text(Path(root, "proc/meminfo"))).get("MemTotal", 0)
    return min([total, *(limit for _, limit in _limited_groups(Path(root), pid))])


def memory_available(root: str = "/", pid: int | None = None) -> int:
    """The memory that `pid` could take now without swapping: MemAvailable, or less by the room in its cgroups.

    A group's room is its limit less what it uses. Page cache not used lately does not count: it is given up first.
    """
    available = parse_sizes(_text(Path(root, "proc/meminfo"))).get("MemAvailable", 0)
    rooms = [limit - _held(group) for group, limit in _limited_groups(Path(root), pid)]
    return max(0, min([available, *rooms]))


def _limited_groups(root: Path, pid: int | None) -> Iterator[tuple[Path, int]]:
    """Every cgroup around `pid` that has a memory limit, innermost first, and that limit."""
    for group in _groups(root, pid):
        # memory.high is no wall, but a group above it is throttled until nothing in it gets on.
        limits = [parse_limit(_text(group / name)) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
        known = [limit for limit in limits if limit is not None]
        if known:
            yield group, min(known)


def _groups(root: Path, pid: int | None) -> Iterator[Path]:
    process = root / "proc" / ("self" if pid is None else str(pid))
    for _, folder in group_folders(root, _text(process / "cgroup"), _text(process / "mountinfo")):
        yield folder


def _held(group: Path) -> int:
    used = parse_limit(_text(group / "memory.current")) or parse_limit(_text(group / "memory.usage_in_bytes")) or 0
    return held_bytes(used, _text(group / "memory.stat"))


def pss_bytes(pid: int, root: str = "/") -> int:
    """The memory of `pid`, shared pages divided among those who share them; its RSS where that may not be read.

    0 when the process is gone. Slow: run it off the event loop.
    """
    sizes = parse_sizes(_text(Path(root, "proc", str(pid), "smaps_rollup")))
    return sizes["Pss"] if "Pss" in sizes else rss_bytes(pid, root)


def tree_pss(pids: Iterable[int], root: str = "/") -> int:
    """The memory of several processes together; what they share counts once. Slow, as `pss_bytes`."""
    return sum(pss_bytes(pid, root) for pid in pids)


def _text(path: Path) -> str:
    """The content of a small kernel file; "" when it cannot be read."""
    try:
        return path.read_text("utf-8", "surrogateescape")
    except OSError:
        return ""
