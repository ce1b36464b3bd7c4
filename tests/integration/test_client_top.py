import json
import re
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import msgspec
import pytest

from h2qd.wire import messages as m
from tests.integration.scripted_daemon import GIB, TOP, WAIT_S, Asked, ScriptedDaemon, scripted
from tests.integration.terminal import ENVIRONMENT, Terminal, begin, tool

BEGIN, END = "\x1b[?1049h", "\x1b[?1049l"
CTRL_C, CTRL_Z = "\x03", "\x1a"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ScriptedDaemon]:
    with scripted(tmp_path) as daemon:
        yield daemon


def counting() -> Callable[[Asked], None]:
    """A handler whose n-th reading has n requests running."""
    numbers = count(1)
    return lambda asked: asked.reply(msgspec.structs.replace(TOP, running=next(numbers)))


# --- off a terminal ------------------------------------------------------------------------------------


def test_a_pipe_gets_one_table(daemon: ScriptedDaemon) -> None:
    ran = tool(daemon.path, "top")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == [
        "level   warn for 2m05s, 81.2% used",
        "memory  2.0 GiB of 4.0 GiB available",
        "stalls  <none>",
        "swap    0 B used, 0 B/s read back",
        "speed   12.3 tokens/s, 1 running, 0 waiting",
        "",
        "LAYER    LIMIT    COMMITTED  RESERVED  FREE     OVER",
        "models   3.0 GiB  1.0 GiB    512 MiB   1.5 GiB  0 B",
        "working  512 MiB  640 MiB    0 B       0 B      128 MiB",
        "",
        "MODEL   STATE  HELD     PLANNED  LIMIT    RUN  WAIT  TOKENS/S",
        "gemma3  ready  1.0 GiB  1.5 GiB  2.0 GiB  1    0     12.3",
        "",
        "REQUEST  OPERATION   STATE    MODEL   TOKENS  AGE",
        "r7       infer.text  running  gemma3  12      1.5s",
    ]


def test_what_the_device_tells_more_is_shown(daemon: ScriptedDaemon) -> None:
    reading = msgspec.structs.replace(
        TOP,
        some_stall_share=3.14,
        temperature_c=52.06,
        devices=[m.DeviceRow("gpu\x1b[2J", 8 * GIB, 3 * GIB)],
        switch=m.SwitchView("qwen3", "drain", ["gemma3"], 1200),
        requests=[],
    )
    daemon.on["daemon.top"] = lambda asked: asked.reply(reading)
    shown = tool(daemon.path, "top").stdout
    for fact in (
        r"stalls +some tasks 3\.1%, all tasks <none> of the last 10 s",
        r"heat +52\.1 C",
        r"device +gpu\\x1b\[2J: 3\.0 GiB of 8\.0 GiB used",
        r"switch +to qwen3: drain for 1\.2s, unloading gemma3",
    ):
        assert re.search(fact, shown), fact
    assert "REQUEST" not in shown


def test_json_is_one_object_and_one_a_line_when_followed(daemon: ScriptedDaemon) -> None:
    daemon.on["daemon.top"] = counting()
    assert json.loads(tool(daemon.path, "top", "--json").stdout) == msgspec.to_builtins(TOP)
    process = begin(daemon.path, "top", "--json", "--watch", "-n", "0.1")
    assert process.stdout is not None
    assert [json.loads(process.stdout.readline())["running"] for _ in range(3)] == [2, 3, 4]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=WAIT_S)
    assert (process.returncode, errors) == (130, "")


def test_a_followed_table_comes_again_after_a_blank_line(daemon: ScriptedDaemon) -> None:
    daemon.on["daemon.top"] = counting()
    process = begin(daemon.path, "top", "-f", "-n", "0.1")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(22)]
    assert lines[15:17] == ["\n", lines[0]]
    assert [line for line in lines if "running," in line] == [
        f"speed   12.3 tokens/s, {n} running, 0 waiting\n" for n in (1, 2)
    ]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=WAIT_S)
    assert process.returncode == 143


# --- live ----------------------------------------------------------------------------------------------


def test_a_live_screen_draws_over_itself_until_q_and_leaves_the_terminal_as_it_was(daemon: ScriptedDaemon) -> None:
    daemon.on["daemon.top"] = counting()
    live = Terminal("--socket", daemon.path, "top", "-n", "0.1")
    before = live.modes()
    live.until(BEGIN)
    for n in (1, 2, 3):
        frame = live.until("q leaves\x1b[K\x1b[J")
        assert f"{n} running" in frame
        assert frame.count("\x1b[2J") == (n == 1)  # later frames only write over
    assert live.modes() != before
    live.type("xq")
    assert live.status() == 0
    assert live.seen.endswith("\x1b[?7h\x1b[?25h" + END)
    assert live.left == before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_however_a_live_screen_ends_the_terminal_is_as_it_was(
    daemon: ScriptedDaemon, number: signal.Signals, status: int
) -> None:
    live = Terminal("--socket", daemon.path, "top", "-n", "3600")
    before = live.modes()
    live.until("q leaves")
    if number is signal.SIGINT:
        live.type(CTRL_C)
    else:
        live.send(number)
    assert live.status() == status
    assert live.seen.endswith(END)
    assert live.left == before


def test_ctrl_c_leaves_also_while_the_daemon_is_slow(daemon: ScriptedDaemon) -> None:
    live = Terminal("--socket", daemon.path, "top", "-n", "0.1")
    live.until("q leaves")
    waiting = threading.Event()
    daemon.on["daemon.top"] = lambda _: waiting.set()
    assert waiting.wait(WAIT_S)
    live.type(CTRL_C)
    assert live.status() == 0
    assert live.seen.endswith(END)


def test_a_stopped_screen_gives_the_terminal_back_and_takes_it_again(daemon: ScriptedDaemon) -> None:
    live = Terminal("--socket", daemon.path, "top", "-n", "3600")
    live.until("q leaves")
    live.type(CTRL_Z)
    live.until(END)
    live.until(BEGIN)  # nobody controls this process group, so the kernel lets it go on at once
    live.until("q leaves")
    live.type("q")
    assert live.status() == 0


def test_a_smaller_window_gets_a_smaller_frame_of_the_same_reading(daemon: ScriptedDaemon) -> None:
    daemon.on["daemon.top"] = lambda asked: asked.reply(
        msgspec.structs.replace(TOP, workers=[msgspec.structs.replace(TOP.workers[0], model="n" * 128)])
    )
    live = Terminal("--socket", daemon.path, "top", "-n", "3600")
    wide = live.until("q leaves").split("\n")
    assert max(len(line.rstrip("\r").removesuffix("\x1b[K")) for line in wide[1:]) == 80
    live.resize(rows=13, columns=72)
    frame = live.until("q leaves; 3 lines more").split("\n")
    assert len(frame) == 13
    assert max(len(line.rstrip("\r").removesuffix("\x1b[K")) for line in frame[1:]) == 72
    live.type("q")
    assert live.status() == 0
    assert [asked.op for asked in daemon.log] == ["daemon.top"]


def test_a_daemon_that_is_down_is_told_on_an_untouched_terminal(tmp_path: Path) -> None:
    live = Terminal("--socket", str(tmp_path / "none.sock"), "top")
    assert live.status() == 69
    assert BEGIN not in live.seen
    assert "fix: start it with" in live.seen


def test_a_daemon_that_goes_away_is_told_after_the_screen(daemon: ScriptedDaemon) -> None:
    live = Terminal("--socket", daemon.path, "top", "-n", "0.1")
    before = live.modes()
    live.until("q leaves")
    daemon.stop()
    live.until(END)
    assert live.status() == 69
    assert "unreachable" in live.seen
    assert live.left == before


@pytest.mark.parametrize("words", [["--once"], ["--json"], []])
def test_a_terminal_that_cannot_be_drawn_on_or_need_not_be_gets_one_table(
    daemon: ScriptedDaemon, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "TERM", "xterm" if words else "dumb")
    once = Terminal("--socket", daemon.path, "top", *words)
    assert once.status() == 0
    assert BEGIN not in once.seen
    assert "gemma3" in once.seen


def test_the_level_is_coloured_for_those_who_want_it(daemon: ScriptedDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    coloured = Terminal("--socket", daemon.path, "top", "--once")
    assert coloured.status() == 0
    assert coloured.seen.startswith("\x1b[33mlevel   warn for 2m05s, 81.2% used\x1b[0m\r\n")
    monkeypatch.setitem(ENVIRONMENT, "NO_COLOR", "1")
    plain = Terminal("--socket", daemon.path, "top", "--once")
    assert plain.status() == 0
    assert "\x1b" not in plain.seen
