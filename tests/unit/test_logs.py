"""Lines on real descriptors: their shape, their bounds, and that none of them can hurt the daemon."""

import json
import logging
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from h2qd import logs

PATTERN_AT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


class Pipe:
    """A pipe to log into; `lines` takes what is there."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)

    def text(self) -> str:
        try:
            return os.read(self.reader, 1 << 20).decode()
        except BlockingIOError:
            return ""

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    for descriptor in (made.reader, made.writer):
        try:
            os.close(descriptor)
        except OSError:  # closed by the test
            continue


class Unspeakable:
    """A field whose text raises."""

    def __str__(self) -> str:
        raise RuntimeError


def test_a_json_line(pipe: Pipe) -> None:
    logs.configure("info", "json", pipe.writer)
    logs.get_logger(model="gemma3").info("model.load", load_ms=1.5, ctx=4096, why=None, sizes=[1, 2])
    (record,) = pipe.records()
    assert list(record)[:3] == ["at", "level", "event"]
    assert PATTERN_AT.fullmatch(record.pop("at"))
    assert record == {
        "level": "info",
        "event": "model.load",
        "model": "gemma3",
        "load_ms": 1.5,
        "ctx": 4096,
        "why": None,
        "sizes": [1, 2],
    }


def test_auto_is_json_off_a_terminal(pipe: Pipe) -> None:
    logs.configure("info", "auto", pipe.writer)
    logs.get_logger().info("daemon.start")
    assert pipe.records()[0]["event"] == "daemon.start"


def test_auto_is_words_on_a_terminal() -> None:
    master, terminal = pty.openpty()
    logs.configure("info", "auto", terminal)
    logs.get_logger().warning("model.fail", model="gemma3", reason="no room")
    line = os.read(master, 4096).decode()
    assert re.fullmatch(PATTERN_AT.pattern + r" warning model\.fail model=gemma3 reason=no room\r\n", line)
    os.close(terminal)
    os.close(master)


def test_levels(pipe: Pipe) -> None:
    logs.configure("warning", "json", pipe.writer)
    log = logs.get_logger()
    log.debug("a.b")
    log.info("a.b")
    log.warning("c.d")
    log.error("e.f")
    assert [record["event"] for record in pipe.records()] == ["c.d", "e.f"]


@pytest.mark.parametrize("form", ["json", "console"])
def test_hostile_values_stay_on_their_line(pipe: Pipe, form: str) -> None:
    logs.configure("info", form, pipe.writer)
    logs.get_logger().info("model.load", name="a\n\x1b[31m\u202e\ud800\x9b", size=float("nan"), huge=10**5000)
    text = pipe.text()
    assert text.count("\n") == 1
    assert text.strip().isprintable()
    if form == "json":
        assert json.loads(text)["name"] == "a\n\x1b[31m\u202e\ud800\x9b"


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_field_that_cannot_be_shown(pipe: Pipe, form: str) -> None:
    logs.configure("info", form, pipe.writer)
    cyclic: list[object] = []
    cyclic.append(cyclic)
    logs.get_logger().info("model.load", field=Unspeakable(), cyclic=cyclic)
    assert "<Unspeakable without a text>" in pipe.text()


def test_exceptions_are_text(pipe: Pipe) -> None:
    logs.configure("info", "json", pipe.writer)
    try:
        int("x")
    except ValueError as error:
        logs.get_logger().exception("daemon.fail")
        logs.get_logger().error("daemon.fail", exc_info=error)
    first, second = pipe.records()
    assert first["exception"].endswith("ValueError: invalid literal for int() with base 10: 'x'\n")
    assert first["exception"] == second["exception"]
    logs.get_logger().exception("daemon.fail")
    assert "exception" not in pipe.records()[0], "there is none"


def test_a_traceback_in_words(pipe: Pipe) -> None:
    logs.configure("info", "console", pipe.writer)
    logs.get_logger().error("daemon.fail", exc_info=ValueError("bad \x1b\nthing"))
    assert pipe.text().endswith(" error   daemon.fail\n    ValueError: bad \\x1b\n    thing\n")


@given(
    st.dictionaries(
        st.from_regex("[a-z]{1,8}", fullmatch=True).filter(lambda key: key not in {"event", "exc_info"}),
        st.one_of(st.text(max_size=3000), st.integers(), st.floats(), st.lists(st.text(max_size=3000), max_size=20)),
        max_size=60,
    ),
    st.sampled_from([logs.render_json, logs.render_console]),
)
def test_every_line_is_bounded(fields: dict[str, Any], render: Any) -> None:
    line = render(None, "info", {"event": "a.b", "level": "info", "at": "now", **fields})
    assert len(line.encode("utf-8", "backslashreplace")) < logs.LINE_BYTES_MAX
    if render is logs.render_json:
        assert json.loads(line)["event"] == "a.b"


def test_many_fields_are_clipped(pipe: Pipe) -> None:
    logs.configure("info", "json", pipe.writer)
    logs.get_logger().info("a.b", **{f"field_{n}": "x" * 30 for n in range(200)})
    (record,) = pipe.records()
    assert record["clipped"] is True
    assert record["event"] == "a.b"


def test_a_reader_that_does_not_read_costs_lines_and_no_time(pipe: Pipe) -> None:
    logs.configure("info", "json", pipe.writer)  # a blocking pipe, as from a shell
    log = logs.get_logger()
    for n in range(200):
        log.info("a.b", n=n, text="x" * 1000)
    got = len(pipe.records())
    assert 0 < got < 200
    log.info("c.d")
    log.info("e.f")
    after, last = pipe.records()
    assert after["lost"] == 200 - got
    assert "lost" not in last


def test_a_closed_reader_raises_nothing(pipe: Pipe) -> None:
    logs.configure("info", "json", pipe.writer)
    os.close(pipe.reader)
    logs.get_logger().info("a.b")


def test_a_full_disk_raises_nothing() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    logs.configure("info", "json", descriptor)
    logs.get_logger().info("a.b")
    os.close(descriptor)
    logs.get_logger().info("a.b")


def test_the_standard_library_comes_along(pipe: Pipe) -> None:
    logs.configure("info", "json", pipe.writer)
    library = logging.getLogger("asyncio")
    library.info("not this")
    library.warning("took %s", "long")
    library.error("cannot", exc_info=ValueError("x"))
    library.warning("wrong %d", "text")
    first, second, third = pipe.records()
    assert (first["event"], first["level"], first["logger"]) == ("library.log", "warning", "asyncio")
    assert first["message"] == "took long"
    assert (second["level"], second["exception"]) == ("error", "ValueError: x\n")
    assert third["message"] == "wrong %d"


def test_rich_stays_out_and_is_not_barred_for_others() -> None:
    code = (
        "import sys; from h2qd import logs; logs.configure('info', 'console'); logs.get_logger().info('a.b');"
        "assert 'structlog.dev' in sys.modules; assert not [name for name in sys.modules if name.startswith('rich')];"
        "import importlib.util; print(importlib.util.find_spec('rich') is not None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert " info    a.b\n" in done.stderr
