"""What a worker may still take, from the kernel's files."""

from pathlib import Path

from h2qd.worker.torch.memory import available_bytes


def kernel(root: Path, groups: str, **files: str) -> Path:
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/meminfo").write_text("MemTotal: 1000 kB\nMemAvailable:  500 kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_device_where_no_group_says_less(tmp_path: Path) -> None:
    assert available_bytes(kernel(tmp_path, "")) == 500 * 1024
    assert available_bytes(kernel(tmp_path, "0::/a\n1:name=systemd:/\nnonsense\n")) == 500 * 1024


def test_the_own_group_where_it_leaves_less_and_its_page_cache_counts_as_free(tmp_path: Path) -> None:
    files = {"a__memory.max": "1000\n", "a__memory.current": "900\n", "a__memory.stat": "anon 5\nfile 300\n"}
    assert available_bytes(kernel(tmp_path, "0::/a\n", **files)) == 400


def test_a_group_without_a_limit(tmp_path: Path) -> None:
    files = {"a__memory.max": "max\n", "a__memory.current": "900\n"}
    assert available_bytes(kernel(tmp_path, "0::/a\n", **files)) == 500 * 1024


def test_a_group_that_is_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    files = {"a__memory.max": "100\n", "a__memory.current": "900\n"}
    assert available_bytes(kernel(tmp_path, "0::/a\n", **files)) == 0


def test_groups_of_version_one(tmp_path: Path) -> None:
    files = {
        "memory__a__memory.limit_in_bytes": "1000\n",
        "memory__a__memory.usage_in_bytes": "600\n",
        "memory__a__memory.stat": "total_cache 50\n",
    }
    groups = "4:cpu,cpuacct:/a\n3:memory:/a\n"
    assert available_bytes(kernel(tmp_path, groups, **files)) == 450
    files["memory__a__memory.limit_in_bytes"] = "9223372036854771712\n"
    assert available_bytes(kernel(tmp_path, groups, **files)) == 500 * 1024


def test_this_very_device_has_some() -> None:
    assert available_bytes() > 0


def test_where_the_kernel_says_nothing_there_is_nothing(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) == 0
