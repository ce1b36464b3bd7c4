"""How much memory this process may still take, as the kernel says.

Called by `weights` between two parts of a model. It is a brake for loads that were planned wrongly or that others
overtook; what may be loaded at all is the supervisor's to decide.
"""

from pathlib import Path

_TEXT_CHARS_MAX = 64 * 1024
_UNLIMITED_BYTES = 2**60
"""A cgroup of version 1 without a limit says a number near 2**63."""


def available_bytes(root: Path = Path("/")) -> int:
    """What the device has, or what the own cgroup leaves, if that is less. Page cache counts as available."""
    device = _fields(root / "proc/meminfo").get("MemAvailable:", 0) * 1024
    return min([device, *_cgroup_bytes(root)])


def _cgroup_bytes(root: Path) -> list[int]:
    """What each memory cgroup of this process leaves; none where it cannot be seen."""
    left = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            folder, names = root / "sys/fs/cgroup" / path.lstrip("/"), ("memory.max", "memory.current", "file")
        elif "memory" in controllers.split(","):
            folder = root / "sys/fs/cgroup/memory" / path.lstrip("/")
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
        else:
            continue
        limit, used = (_number(folder / name) for name in names[:2])
        if limit is not None and used is not None and limit < _UNLIMITED_BYTES:
            left.append(max(0, limit - used + _fields(folder / "memory.stat").get(names[2], 0)))
    return left


def _fields(path: Path) -> dict[str, int]:
    """The first number of each line of "name number" text."""
    pairs = (line.split() for line in _text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) > 1 and pair[1].isdecimal()}


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            return file.read(_TEXT_CHARS_MAX)
    except OSError:
        return ""
