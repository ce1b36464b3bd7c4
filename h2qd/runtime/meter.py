"""What the kernel's files on memory say: parsers of their texts, and where to find a process's cgroups. Bytes.

Shared by `readings` (the device), `scales` (workers), `cgroups` and `containment`. Parsers are pure and total;
it judges nothing. A figure that cannot be read does not raise: processes that are gone hold 0, limits that are
unreadable do not bind.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_OCTAL = re.compile(r"\\([0-7]{3})")
_STALL = re.compile(r"^(some|full) avg10=([0-9]{1,3}\.[0-9]{1,2})(?: |$)", re.MULTILINE)


# --- parsers ----------------------------------------------------------------------------------------


def parse_sizes(text: str) -> dict[str, int]:
    """The `Name:  N kB` lines of /proc/meminfo or smaps_rollup, in bytes; other lines are passed over."""
    sizes: dict[str, int] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[0].endswith(":") and _is_count(words[1]) and words[2] == "kB":
            sizes[words[0][:-1]] = int(words[1]) * 1024
    return sizes


def parse_counts(text: str) -> dict[str, int]:
    """The `name N` lines of a memory.stat, a memory.events or /proc/vmstat."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and _is_count(pair[1])}


def parse_limit(text: str) -> int | None:
    """A limit file of a cgroup; None for "max" and for what is no number."""
    text = text.strip()
    return int(text) if _is_count(text) else None


def parse_stalls(text: str) -> dict[str, float]:
    """A pressure file (Documentation/accounting/psi.rst): percent of the last 10 s, under "some" and "full"."""
    return {name: min(100.0, float(share)) for name, share in _STALL.findall(text)}


def parse_memberships(text: str) -> dict[str, str]:
    """/proc/PID/cgroup: the path of the group by controller, v2 under ""."""
    groups: dict[str, str] = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if path.startswith("/"):
            groups |= dict.fromkeys(controllers.split(","), path)
    return groups


def parse_mounts(text: str) -> dict[str, tuple[str, str]]:
    """/proc/PID/mountinfo: (path within the hierarchy, mount point) of "" (cgroup v2) and "memory" (v1)."""
    mounts: dict[str, tuple[str, str]] = {}
    for line in text.splitlines():
        mount, _, filesystem = line.partition(" - ")
        places, kind = mount.split(), filesystem.split()
        if len(places) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            mounts.setdefault("", (_unescaped(places[3]), _unescaped(places[4])))
        elif kind[0] == "cgroup" and "memory" in kind[2].split(","):
            mounts.setdefault("memory", (_unescaped(places[3]), _unescaped(places[4])))
    return mounts


def _is_count(word: str) -> bool:
    """Whether `int` takes it, as a number that the kernel can mean (64 bits)."""
    return word.isascii() and word.isdigit() and len(word) <= 20


def _unescaped(path: str) -> str:
    """Blanks and backslashes are octal in mountinfo."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), path)


# --- cgroups and processes --------------------------------------------------------------------------


def group_folders(root: Path, cgroup: str, mountinfo: str) -> Iterator[tuple[str, Path]]:
    """The hierarchy ("" is v2, "memory" v1) and folder of each cgroup around a process, innermost first.

    As far up as they can be seen from here; from the texts of the process's /proc/PID/cgroup and mountinfo.
    """
    memberships = parse_memberships(cgroup)
    for controller, (top, point) in parse_mounts(mountinfo).items():
        if controller not in memberships:
            continue
        inside = os.path.relpath(memberships[controller], top)
        # A container may see its path from outside of its own mount: then the mount point is its group.
        parts = () if inside.startswith("..") else Path(inside).parts
        folder = root / point.lstrip("/")
        for depth in range(len(parts), -1, -1):
            yield controller, folder.joinpath(*parts[:depth])


def held_bytes(used_bytes: int, stat: str) -> int:
    """What a group uses and would not give up at once, from its memory.stat."""
    counts = parse_counts(stat)
    # v1's plain counters leave out the groups below; its total_ ones are what v2 counts.
    return used_bytes - counts.get("total_inactive_file", counts.get("inactive_file", 0))


def rss_bytes(pid: int, root: str = "/") -> int:
    """The resident memory of `pid`, shared pages counted in full; 0 when it is gone. Cheap."""
    words = _text(Path(root, "proc", str(pid), "statm")).split()
    return int(words[1]) * _PAGE_BYTES if len(words) > 1 and _is_count(words[1]) else 0


def _text(path: Path) -> str:
    """The content of a small kernel file; "" when it cannot be read."""
    try:
        return path.read_text("utf-8", "surrogateescape")
    except OSError:
        return ""
