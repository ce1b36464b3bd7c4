"""Files of the kernel, read again and again: real ones, also when they go and come back under the same name."""

import os
from pathlib import Path

import pytest

from h2qd.runtime import cgroups
from h2qd.runtime.kernel_file import KernelFile


def test_it_is_read_anew_each_time() -> None:
    file = KernelFile(Path("/proc/self/comm"))
    before = file.text()
    Path("/proc/self/comm").write_text("renamed")
    after = file.text()
    Path("/proc/self/comm").write_text(before or "")
    file.close()
    assert (before != after, after) == (True, "renamed\n")


def test_files_longer_than_a_page_are_read_whole() -> None:
    file = KernelFile(Path("/proc/self/smaps"))
    text = file.text()
    file.close()
    assert text is not None
    assert len(text) > 16 * os.sysconf("SC_PAGE_SIZE")
    assert "VmFlags" in text.splitlines()[-1], "it ends where the kernel ends it"


def test_a_file_without_end_is_cut() -> None:
    file = KernelFile(Path("/dev/zero"))
    assert file.text() == "\0" * 2**20
    file.close()


def test_absent_and_unreadable_are_not_the_same(tmp_path: Path) -> None:
    assert KernelFile(tmp_path / "none").text() == ""
    assert KernelFile(tmp_path).text() is None
    assert KernelFile(Path("/proc/self/stat/none")).text() == ""


def test_a_group_that_goes_and_comes_back() -> None:
    own = cgroups._own_group(Path("/"), cgroups.V2.mount) or cgroups._own_group(Path("/"), cgroups.V1.mount)
    if own is None:
        pytest.skip("no cgroups are mounted")
    folder = own / f"h2qd-test-file-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"cannot make a group: {error}")
    before = len(list(Path("/proc/self/fd").iterdir()))
    name = "cgroup.stat" if (folder / "cgroup.stat").exists() else "notify_on_release"
    file = KernelFile(folder / name)
    says = file.text()
    assert says
    folder.rmdir()
    assert file.text() == ""
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    folder.mkdir()
    again = file.text()
    folder.rmdir()
    file.close()
    assert again == says
