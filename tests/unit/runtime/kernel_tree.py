"""A machine's /proc and /sys as files of our own: what a kernel would say, under a folder."""

from pathlib import Path

MEMINFO = (
    "MemTotal:        8388608 kB\nMemFree:          100000 kB\nMemAvailable:    4194304 kB\nHugePages_Total:  0\n"
)
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
OTHER_MOUNTS = (
    "21 1 8:1 / / rw - ext4 /dev/sda1 rw\nshort\n36 31 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
)


class Tree:
    """A /proc and a /sys under a folder."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.write("proc/meminfo", MEMINFO)

    def write(self, path: str, text: str) -> None:
        file = Path(self.root, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def process(self, cgroup: str, mounts: str, pid: str = "self") -> None:
        self.write(f"proc/{pid}/cgroup", cgroup)
        self.write(f"proc/{pid}/mountinfo", OTHER_MOUNTS + mounts)

    def group(self, path: str, **files: int | str) -> None:
        for name, text in files.items():
            self.write(f"sys/fs/cgroup/{path}/memory.{name}", f"{text}\n")
