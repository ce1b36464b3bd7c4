"""The folder of saved sessions: whole files or none, a quota, and hands off everything else."""

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from h2qd.sessions.folder import Folder, FolderError, file_name
from h2qd.sessions.record import Record, RecordError, check

SHA, OTHER = "ab" * 32, "cd" * 32
PLENTY = 10**9


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "sessions"


@pytest.fixture
def folder(path: Path) -> Folder:
    return Folder(path)


def write(
    folder: Folder,
    key: str,
    data: bytes = b"d" * 1000,
    *,
    sha256: str = SHA,
    quota: int = PLENTY,
    durable: bool = True,
) -> int:
    def fill(path: str) -> int:
        return Path(path).write_bytes(data)

    record = Record(key, sha256, "f16", "0.3.36", 1, 100, 64, 0)
    return folder.write(record, fill, expected_bytes=len(data), quota_bytes=quota, durable=durable)


def age(path: Path, key: str, seconds: int, sha256: str = SHA) -> None:
    os.utime(path / file_name(key, sha256), (seconds, seconds))


def names(folder: Folder) -> list[str]:
    return [row.name for row in folder.rows()]


def test_it_is_for_its_owner_only(path: Path, folder: Folder) -> None:
    write(folder, "1000-a")
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert [stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()] == [0o600]
    path.chmod(0o755)
    Folder(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


@pytest.mark.parametrize("durable", [True, False])
def test_what_is_written_is_there(path: Path, folder: Folder, *, durable: bool) -> None:
    size = write(folder, "1000-a", b"hello", durable=durable)
    (row,) = Folder(path).rows()
    assert (row.name, row.uid, row.sha256, row.tokens, row.size_bytes) == ("a", 1000, SHA, 100, size)
    assert folder.total_bytes() == size
    with folder.opened("1000-a", SHA) as descriptor:
        assert check(descriptor).data_bytes == 5
        assert os.pread(descriptor, 5, 0) == b"hello"
    with pytest.raises(FileNotFoundError), folder.opened("1000-a", OTHER):
        pass


def test_sessions_are_told_apart(path: Path, folder: Folder) -> None:
    for key in ("1-a", "1-A", "1-a.b", "1-a-b", "11-a", "1-0"):
        write(folder, key)
    write(folder, "1-a", sha256=OTHER)
    assert len({file.name.lower() for file in path.iterdir()}) == 7
    assert sorted(names(folder)) == ["0", "A", "a", "a", "a", "a-b", "a.b"]
    assert folder.remove("1-a", OTHER)[0] == 1
    assert folder.remove("1-a", OTHER) == (0, 0)
    write(folder, "1-a", sha256=OTHER)
    count, freed = folder.remove("1-a")
    assert count == 2
    assert freed > 2000
    assert sorted(names(folder)) == ["0", "A", "a", "a-b", "a.b"]
    with pytest.raises(RecordError):
        folder.remove("../x")


def test_the_latest_comes_first(path: Path, folder: Folder) -> None:
    for index, key in enumerate(("1-b", "1-c", "1-a")):
        write(folder, key)
        age(path, key, 1000 + index)
    assert names(folder) == ["a", "c", "b"]
    with folder.opened("1-b", SHA) as descriptor:
        folder.touch(descriptor)
    assert names(folder) == ["b", "a", "c"]


def test_room_is_made_of_what_was_used_longest_ago(path: Path, folder: Folder) -> None:
    for index, key in enumerate(("1-a", "1-b", "1-c")):
        size = write(folder, key)
        age(path, key, 1000 + index)
    write(folder, "1-d", quota=3 * size + 8)
    assert sorted(names(folder)) == ["b", "c", "d"]
    write(folder, "1-b", b"d" * 1001, quota=3 * size + 9)
    assert sorted(names(folder)) == ["b", "c", "d"], "a file makes room for its successor"
    assert folder.total_bytes() <= 3 * size + 9


def test_what_can_never_fit_costs_nobody_else(folder: Folder) -> None:
    size = write(folder, "1-a")
    with pytest.raises(FolderError, match="may take"):
        write(folder, "1-b", b"d" * 2000, quota=size + 500)
    with pytest.raises(FolderError):
        write(folder, "1-a", quota=0)
    assert names(folder) == ["a"]


@pytest.mark.parametrize("wrong", ["fails", "raises", "lies"])
def test_a_failed_write_leaves_what_was(path: Path, folder: Folder, wrong: str) -> None:
    write(folder, "1-a", b"before")

    def fill(path: str) -> int:
        Path(path).write_bytes(b"after")
        if wrong == "raises":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return {"fails": 0, "lies": 6}[wrong]

    with pytest.raises(FolderError, match=r"Input/output error|No space left"):
        folder.write(
            Record("1-a", SHA, "f16", "x", 1, 1, 0, 0), fill, expected_bytes=5, quota_bytes=PLENTY, durable=True
        )
    assert len(list(path.iterdir())) == 1
    with folder.opened("1-a", SHA) as descriptor:
        assert os.pread(descriptor, 6, 0) == b"before"


def test_foreign_files_stay_and_damaged_ones_of_ours_go(tmp_path: Path, path: Path, folder: Folder) -> None:
    write(folder, "1-a")
    foreign = ["notes.txt", "x.session", f"1-a@{SHA}", f"1-a@{SHA[:-1]}.session"]
    for name in foreign:
        (path / name).write_bytes(b"mine")
    (path / "a folder").mkdir()
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    (path / file_name("1-link", SHA)).symlink_to(outside)
    os.mkfifo(path / file_name("1-pipe", SHA))
    (path / file_name("1-b", SHA)).write_bytes(b"damaged")
    (path / file_name("1-c", SHA)).write_bytes((path / file_name("1-a", SHA)).read_bytes())
    assert names(folder) == ["a"]
    left = {file.name for file in path.iterdir()}
    assert left == {*foreign, "a folder", *(file_name(key, SHA) for key in ("1-a", "1-link", "1-pipe"))}
    for key in ("1-link", "1-pipe"):
        with pytest.raises(OSError, match=r"symbolic|Invalid"), folder.opened(key, SHA):
            pass
    assert outside.read_bytes() == b"precious"
    write(folder, "1-b", quota=1500)
    assert {file.name for file in path.iterdir()} == left - {file_name("1-a", SHA)} | {file_name("1-b", SHA)}


def test_what_a_dead_writer_left_is_swept_and_a_living_one_s_is_not(path: Path, folder: Folder) -> None:
    seen: list[list[str]] = []

    def fill(filled: str) -> int:
        (path / f"{file_name('1-dead', SHA)}.1.writing").write_bytes(b"half")
        Folder(path)
        seen.append([file.name for file in path.iterdir()])
        return Path(filled).write_bytes(b"alive")

    record = Record("1-a", SHA, "f16", "x", 1, 1, 0, 0)
    folder.write(record, fill, expected_bytes=5, quota_bytes=PLENTY, durable=False)
    assert seen == [[f"{file_name('1-a', SHA)}.{os.getpid()}.writing"]]
    assert names(folder) == ["a"]


def test_a_file_that_another_writes_is_not_touched(path: Path, folder: Folder) -> None:
    temporary = path / f"{file_name('1-a', SHA)}.{os.getpid()}.writing"
    with temporary.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(FolderError, match="exists"):
            write(folder, "1-a")
        assert temporary.exists()


def test_a_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="exists"):
        Folder(tmp_path / "file")
