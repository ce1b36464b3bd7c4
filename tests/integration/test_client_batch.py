"""Batches end to end: the tool as a process, a daemon that is real wherever what it does matters, files on a disk."""

import json
import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from h2qctl import Client
from h2qd.wire import messages as m
from tests.harness import DaemonProcess, await_true, running, started
from tests.integration.scripted_daemon import SAMPLES, WAIT_S, Asked, ScriptedDaemon, answer, held, scripted
from tests.integration.terminal import ENVIRONMENT, TOOL, Terminal, begin, tool

MODELS: dict[str, dict[str, object]] = {name: {"tokens": 3, "token_ms": 1} for name in ("a", "b", "c")}
EACH = 200


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ScriptedDaemon]:
    with scripted(tmp_path) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with running(tmp_path_factory.mktemp("daemon"), MODELS) as daemon:
        yield daemon


def lines(path: Path, *jobs: object) -> str:
    """A file of these jobs; bytes are written as they are."""
    path.write_bytes(b"".join((job if isinstance(job, bytes) else json.dumps(job).encode()) + b"\n" for job in jobs))
    return str(path)


def interleaved(path: Path) -> str:
    """Lines that would switch each time if they ran as they stand."""
    names = sorted(MODELS) * EACH
    return lines(path, *({"id": f"{at}", "model": name, "prompt": f"say {at}"} for at, name in enumerate(names)))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in path.read_text().splitlines()]


def each_once(path: Path, count: int) -> bool:
    """Whether the output has each line of the input once, and answered by the model that it names."""
    found = rows(path)
    assert Counter(row["line"] for row in found) == Counter(range(1, count + 1))
    for row in found:
        assert row["ok"], row
        assert (row["id"], row["answer"]["model"]) == (f"{row['line'] - 1}", sorted(MODELS)[(row["line"] - 1) % 3])
    return True


def moves(daemon: DaemonProcess, since: int) -> list[str | None]:
    """Which models became ready since then."""
    with Client(str(daemon.socket)) as client:
        notices = list(client.events(since, follow=False))
    return [notice.model for notice in notices if notice.event == "model.moved" and notice.data.get("now") == "ready"]


def latest(daemon: DaemonProcess) -> int:
    with Client(str(daemon.socket)) as client:
        watch = client.events(follow=False)
        for _ in watch:
            pass
        assert watch.end is not None
        return watch.end.seq


def grown(path: Path, count: int) -> None:
    """Wait until the output has so many lines."""
    await_true(lambda: path.exists() and path.read_bytes().count(b"\n") >= count, f"{count} lines are written")


# --- with a real daemon --------------------------------------------------------------------------------


def test_six_hundred_lines_for_three_models_cost_a_load_each(real: DaemonProcess, tmp_path: Path) -> None:
    with Client(str(real.socket)) as client:
        client.load("b")
    since = latest(real)
    source, output = interleaved(tmp_path / "in"), tmp_path / "out"
    ran = tool(str(real.socket), "batch", source, "-o", str(output), "--json")
    assert (ran.returncode, ran.stderr) == (0, "")
    summary = json.loads(ran.stdout)
    assert (summary["lines"], summary["ok"], summary["failed"], summary["new"]) == (600, 600, 0, 600)
    assert summary["tokens"] == 600 * 3
    assert each_once(output, 3 * EACH)
    assert moves(real, since) == ["a", "c"]
    assert [row["answer"]["model"] for row in rows(output)[::EACH]] == ["b", "a", "c"]
    again = tool(str(real.socket), "batch", source, "-o", str(output))
    assert again.stdout.startswith("600 lines: 600 ok, 0 failed\n0 of them in this run")


def test_a_tool_that_is_killed_again_and_again_loses_nothing(real: DaemonProcess, tmp_path: Path) -> None:
    source, output = interleaved(tmp_path / "in"), tmp_path / "out"
    dice = random.Random(7)
    reached = 0
    while reached < 400:
        process = begin(str(real.socket), "batch", source, "-o", str(output), "--concurrency", "4")
        grown(output, reached + dice.randint(20, 90))
        process.kill()
        process.communicate()
        before = reached
        reached = output.read_bytes().count(b"\n")
        assert reached > before
    assert tool(str(real.socket), "batch", source, "-o", str(output)).returncode == 0
    assert each_once(output, 3 * EACH)


def test_a_torn_line_is_run_again(real: DaemonProcess, tmp_path: Path) -> None:
    source, output = interleaved(tmp_path / "in"), tmp_path / "out"
    process = begin(str(real.socket), "batch", source, "-o", str(output))
    grown(output, 50)
    process.kill()
    process.communicate()
    whole = output.read_bytes()
    output.write_bytes(whole[: whole.rindex(b'"ok"')])
    assert tool(str(real.socket), "batch", source, "-o", str(output)).returncode == 0
    assert each_once(output, 3 * EACH)


def test_a_daemon_that_is_killed_and_comes_back_is_waited_for(tmp_path: Path) -> None:
    source, output = interleaved(tmp_path / "in"), tmp_path / "out"
    with running(tmp_path / "d", MODELS) as daemon:
        process = begin(str(daemon.socket), "batch", source, "-o", str(output))
        grown(output, 90)
        daemon.kill()
    with started(tmp_path / "d", daemon.config):
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert said.startswith("600 lines: 600 ok, 0 failed\n")
    assert "waiting for the daemon" in errors
    assert each_once(output, 3 * EACH)


def test_a_daemon_that_stays_away_ends_the_run_and_the_next_goes_on(tmp_path: Path) -> None:
    source, output = interleaved(tmp_path / "in"), tmp_path / "out"
    with running(tmp_path / "d", MODELS) as daemon:
        process = begin(str(daemon.socket), "batch", source, "-o", str(output), "--wait", "0.3")
        grown(output, 30)
        daemon.kill()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 69
        assert "fix: start the daemon; the same command then goes on" in errors
    with started(tmp_path / "d", daemon.config):
        assert tool(str(daemon.socket), "batch", source, "-o", str(output)).returncode == 0
    assert each_once(output, 3 * EACH)


def test_ctrl_c_cancels_writes_what_came_and_tells_how_to_go_on(real: DaemonProcess, tmp_path: Path) -> None:
    source, output = interleaved(tmp_path / "in"), tmp_path / "out"
    process = begin(str(real.socket), "batch", source, "-o", str(output))
    grown(output, 40)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=WAIT_S)
    assert (process.returncode, said) == (130, "")
    done = len(rows(output))
    assert errors.splitlines()[-1] == f"stopped; {done} of 600 lines are done, and the same command goes on"
    with Client(str(real.socket)) as client:
        await_true(lambda: client.status().running == 0, "nothing runs any more")
    assert tool(str(real.socket), "batch", source, "-o", str(output)).returncode == 0
    assert each_once(output, 3 * EACH)


def test_a_full_disk_ends_the_run_with_whole_lines(real: DaemonProcess, tmp_path: Path) -> None:
    source, output = interleaved(tmp_path / "in"), tmp_path / "out"
    command = [*TOOL, "--socket", str(real.socket), "batch", source, "-o", str(output)]
    ran = subprocess.run(
        ["/bin/sh", "-c", 'ulimit -f 20; exec "$@"', "sh", *command],
        capture_output=True, text=True, timeout=30, check=False, env=ENVIRONMENT,
    )  # fmt: skip
    assert (ran.returncode, "error[state_not_written]" in ran.stderr) == (1, True)
    assert 0 < len(rows(output)) < 3 * EACH
    assert output.read_bytes().endswith(b"}\n")
    assert tool(str(real.socket), "batch", source, "-o", str(output)).returncode == 0
    assert each_once(output, 3 * EACH)


def test_bad_lines_are_told_one_by_one_and_can_be_run_again(real: DaemonProcess, tmp_path: Path) -> None:
    output = tmp_path / "out"
    source = lines(
        tmp_path / "in",
        {"id": "good", "model": "a", "prompt": "p"},
        b"{torn",
        {"id": "typo", "model": "a", "prompt": "p", "temprature": 1},
        b"",
        {"id": "long", "model": "a", "prompt": "x " * 5000},
        {"id": "nobody", "model": "nobody", "prompt": "p"},
        {"custom_id": "theirs", "method": "POST", "url": "/v1/completions", "body": {"model": "a", "prompt": "p"}},
    )
    ran = tool(str(real.socket), "batch", source, "-o", str(output), "--retries", "0")
    assert ran.returncode == 1
    assert ran.stdout.splitlines()[0] == "6 lines: 2 ok, 4 failed"
    found = {row["line"]: row for row in rows(output)}
    assert {number: row.get("error", {}).get("code") for number, row in found.items()} == {
        1: None, 2: "invalid_request", 3: "invalid_request", 5: "context_overflow", 6: "no_such_model",
        7: None,
    }  # fmt: skip
    assert [found[number]["id"] for number in (1, 3, 5, 6, 7)] == ["good", "typo", "long", "nobody", "theirs"]
    assert tool(str(real.socket), "batch", source, "-o", str(output)).stdout.splitlines()[1].startswith("0 of them")
    since = len(rows(output))
    tool(str(real.socket), "batch", source, "-o", str(output), "--retry-failed", "--retries", "0")
    assert sorted(row["line"] for row in rows(output)) == sorted(found)
    assert since == len(found)


def test_a_dry_run_tells_models_order_and_lines_and_writes_nothing(real: DaemonProcess, tmp_path: Path) -> None:
    with Client(str(real.socket)) as client:
        client.switch("c")
    output = tmp_path / "out"
    source = lines(tmp_path / "in", {"model": "a", "prompt": "p"}, {"prompt": "p"}, {"model": "a", "prompt": 5})
    ran = tool(str(real.socket), "batch", source, "-o", str(output), "--dry-run")
    assert ran.stdout.splitlines() == [
        "MODEL  LINES  BAD  STATE",
        "c      1      0    ready",
        "a      2      1    cold",
    ]
    assert ran.returncode == 0
    assert not output.exists()
    unknown = tool(str(real.socket), "batch", source, "--dry-run", "--model", "nobody", "--json")
    assert unknown.returncode == 4
    assert json.loads(unknown.stdout)["order"][1] == {"model": "nobody", "lines": 1, "unreadable": 0, "state": None}


# --- with a daemon that says what it is told to --------------------------------------------------------


def refusing(code: str, times: int, **fields: Any) -> Any:
    """A handler that refuses each prompt so often, then answers it."""
    seen: Counter[str] = Counter()

    def handler(asked: Asked) -> None:
        seen[asked.body.prompt] += 1
        if seen[asked.body.prompt] <= times:
            asked.error(code, "cannot", retryable=True, **fields)
        else:
            asked.reply(answer(asked.body.prompt))

    return handler


@pytest.mark.parametrize("code", ["queue_full", "memory_pressure", "worker_crashed"])
def test_what_will_pass_is_tried_again(daemon: ScriptedDaemon, tmp_path: Path, code: str) -> None:
    daemon.on["infer.text"] = refusing(code, 1, retry_after_ms=600)
    source, output = lines(tmp_path / "in", {"prompt": "one"}, {"prompt": "two"}), tmp_path / "out"
    assert tool(daemon.path, "batch", source, "-o", str(output)).returncode == 0
    assert [row["ok"] for row in rows(output)] == [True, True]
    assert [asked.body.priority for asked in daemon.log if asked.op == "infer.text"] == ["low"] * 4
    daemon.on["infer.text"] = refusing(code, 9)
    ran = tool(daemon.path, "batch", source, "-o", str(tmp_path / "other"), "--retries", "1")
    assert ran.returncode == 1
    assert [row["error"]["code"] for row in rows(tmp_path / "other")] == [code] * 2


def test_a_daemon_that_is_stopping_is_waited_for(daemon: ScriptedDaemon, tmp_path: Path) -> None:
    stopping = msgspec.structs.replace(SAMPLES[m.Status], phase="stopping")
    looks = iter([SAMPLES[m.Status], stopping, stopping])
    daemon.on["daemon.status"] = lambda asked: asked.reply(next(looks, None))
    daemon.on["infer.text"] = refusing("shutting_down", 1)
    ran = tool(daemon.path, "batch", lines(tmp_path / "in", {"prompt": "one"}), "-o", str(tmp_path / "out"))
    assert (ran.returncode, "waiting for the daemon" in ran.stderr) == (0, True)
    assert next(looks, None) is None


def test_a_model_that_cannot_be_used_is_asked_once(daemon: ScriptedDaemon, tmp_path: Path) -> None:
    daemon.on["infer.text"] = lambda asked: (
        asked.error("no_fit", "cannot load it") if asked.body.model == "large" else asked.reply()
    )
    jobs = [{"model": "large", "prompt": f"{at}"} for at in range(50)] + [{"model": "small", "prompt": "p"}]
    ran = tool(daemon.path, "batch", lines(tmp_path / "in", *jobs), "-o", str(tmp_path / "out"), "--concurrency", "1")
    assert ran.stdout.splitlines()[0] == "51 lines: 1 ok, 50 failed"
    asked = [one.body.model for one in daemon.log if one.op == "infer.text"]
    assert asked == ["large", "small"]
    assert {row["error"]["code"] for row in rows(tmp_path / "out") if not row["ok"]} == {"no_fit"}


def test_a_line_that_brings_its_model_down_is_found_and_takes_no_other_with_it(
    daemon: ScriptedDaemon, tmp_path: Path
) -> None:
    """The first time it dies with three others; then each of the four is asked alone."""
    waiting: list[Asked] = []
    beside: list[int] = []

    def handler(asked: Asked) -> None:
        waiting.append(asked)
        if asked.body.prompt == "poison":
            beside.append(len(waiting) - 1)
            while waiting:
                waiting.pop().error("worker_crashed", retryable=True)
        elif beside:
            assert waiting == [asked]
            waiting.pop().reply(answer(asked.body.prompt))

    daemon.on["infer.text"] = handler
    words = ["one", "two", "three", "poison", "four", "five"]
    source = lines(tmp_path / "in", *({"id": word, "prompt": word} for word in words))
    ran = tool(daemon.path, "batch", source, "-o", str(tmp_path / "out"), "--concurrency", "4")
    assert ran.stdout.startswith("6 lines: 5 ok, 1 failed\n")
    assert beside == [3, 0, 0]
    assert [row["id"] for row in rows(tmp_path / "out") if not row["ok"]] == ["poison"]


def test_as_many_at_once_as_the_model_has_slots_and_a_session_in_turn(daemon: ScriptedDaemon, tmp_path: Path) -> None:
    daemon.on["model.plan"] = lambda asked: asked.reply(msgspec.structs.replace(SAMPLES[m.Plan], slots=3))
    waiting: list[Asked] = []
    most: list[int] = []

    def handler(asked: Asked) -> None:
        waiting.append(asked)
        most.append(len(waiting))
        if len(waiting) == 3 or asked.body.prompt == "last":
            while waiting:
                waiting.pop().reply(answer(asked.body.prompt))

    daemon.on["infer.text"] = handler
    source = lines(tmp_path / "in", *({"prompt": f"{at}"} for at in range(9)))
    assert tool(daemon.path, "batch", source, "-o", str(tmp_path / "out")).returncode == 0
    assert most == [1, 2, 3] * 3
    del daemon.on["infer.text"]
    daemon.log.clear()
    jobs = [{"prompt": f"{at}", "session": "trip"} for at in range(20)]
    again = tool(daemon.path, "batch", lines(tmp_path / "in2", *jobs), "-o", str(tmp_path / "out2"))
    assert again.returncode == 0
    assert [one.body.prompt for one in daemon.log if one.op == "infer.text"] == [f"{at}" for at in range(20)]


def test_every_kind_of_line_is_asked_for_as_what_it_is(daemon: ScriptedDaemon, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}]
    embed = {"texts": ["a"], "adapters": [{"name": "polite", "scale": 0.5}]}
    source = lines(tmp_path / "in", {"prompt": "p", "seed": 1}, {"messages": turns}, embed)
    assert tool(daemon.path, "batch", source, "-o", str(tmp_path / "out"), "--timeout-each", "9").returncode == 0
    text = daemon.heard("infer.text")
    assert text.body == m.Infer(prompt="p", model="gemma3", seed=1, priority="low")
    assert text.envelope.deadline_ms == 9000
    assert daemon.heard("infer.chat").body.messages == [m.ChatMessage("user", "hi")]
    assert daemon.heard("infer.embed").body == m.Embed(
        texts=["a"], model="gemma3", priority="low", adapters=[m.AdapterUse("polite", 0.5)]
    )
    vectors = next(row["answer"]["vectors"] for row in rows(tmp_path / "out") if row["line"] == 3)
    assert vectors == msgspec.to_builtins(SAMPLES[m.Embeddings])["vectors"]


def test_time_that_is_up_fails_a_line_or_ends_the_run(daemon: ScriptedDaemon, tmp_path: Path) -> None:
    daemon.on["infer.text"] = held(daemon)
    source, output = lines(tmp_path / "in", {"prompt": "p"}), tmp_path / "out"
    ran = tool(daemon.path, "batch", source, "-o", str(output), "--timeout", "0.2")
    assert (ran.returncode, output.read_bytes()) == (124, b"")
    daemon.heard("request.cancel")
    assert tool(daemon.path, "batch", source, "-o", str(output), "--timeout-each", "0.1").returncode == 1
    assert rows(output)[0]["error"]["code"] == "timeout"


def test_a_second_ctrl_c_waits_for_nobody(daemon: ScriptedDaemon, tmp_path: Path) -> None:
    daemon.on["infer.text"] = held(daemon)
    told: list[Asked] = []
    daemon.on["request.cancel"] = told.append
    source = lines(tmp_path / "in", {"prompt": "p"})
    process = begin(daemon.path, "batch", source, "-o", str(tmp_path / "out"))
    daemon.heard("infer.text")
    process.send_signal(signal.SIGINT)
    daemon.heard("request.cancel")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=WAIT_S)
    assert (process.returncode, "Traceback" in errors) == (130, False)


def test_without_a_model_a_daemon_or_an_output_nothing_begins(daemon: ScriptedDaemon, tmp_path: Path) -> None:
    source, output = lines(tmp_path / "in", {"prompt": "p"}), str(tmp_path / "out")
    idle = msgspec.structs.replace(SAMPLES[m.Status], active=None, resident=[])
    daemon.on["daemon.status"] = lambda asked: asked.reply(idle)
    assert tool(daemon.path, "batch", source, "-o", output).returncode == 3
    assert tool(daemon.path, "batch", source, "-o", output, "--model", "a").returncode == 0
    assert tool(daemon.path, "batch", source).returncode == 2
    assert tool(daemon.path, "batch", source, "-o", source).returncode == 2
    os.link(source, tmp_path / "link")
    assert tool(daemon.path, "batch", source, "-o", str(tmp_path / "link")).returncode == 2
    assert tool(str(tmp_path / "none.sock"), "batch", source, "-o", str(tmp_path / "fresh")).returncode == 69


def test_a_terminal_gets_a_bar_that_goes_away(daemon: ScriptedDaemon, tmp_path: Path) -> None:
    source = lines(tmp_path / "in", {"model": "gemma3", "prompt": "p"})
    live = Terminal("--socket", daemon.path, "batch", source, "-o", str(tmp_path / "out"))
    assert live.status() == 0
    assert "\r\x1b[K[................] 0/1  gemma3\r\x1b[K" in live.seen
    assert "1 line: 1 ok, 0 failed" in live.seen
