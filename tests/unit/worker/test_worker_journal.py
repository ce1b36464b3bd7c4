"""What reaches the daemon's log."""

import json

import pytest

from h2qd.worker import journal


def entry(capfd: pytest.CaptureFixture[str]) -> dict[str, str | int]:
    line = capfd.readouterr().err
    assert line.count("\n") == 1
    assert len(line.encode()) <= 4096
    decoded: dict[str, str | int] = json.loads(line)
    return decoded


def test_one_line_with_the_fields(capfd: pytest.CaptureFixture[str]) -> None:
    journal.record("zygote.fork_failed", worker=3, note="two\nlines")
    found = entry(capfd)
    assert (found["event"], found["worker"], found["note"]) == ("zygote.fork_failed", 3, "two\nlines")


@pytest.mark.parametrize("message", ["short", "x" * 100_000, "\x00" * 5000, "lone \udcff surrogate", "ü" * 5000])
def test_errors_are_told_and_bounded(capfd: pytest.CaptureFixture[str], message: str) -> None:
    journal.record("worker.engine_failed", ValueError(message))
    found = entry(capfd)
    assert str(found["error"]).startswith("ValueError: ")
    assert len(str(found["error"])) <= 600


def test_the_traceback_says_where(capfd: pytest.CaptureFixture[str]) -> None:
    try:
        int("x")
    except ValueError as error:
        journal.record("worker.engine_failed", error)
    assert "test_worker_journal.py" in str(entry(capfd)["traceback"])
