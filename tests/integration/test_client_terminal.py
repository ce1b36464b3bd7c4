import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from h2qctl.errors import H2qError
from h2qd.wire import messages as m
from h2qd.wire.codes import CODES
from h2qd.wire.frames import Kind, Response, encode
from tests.integration.scripted_daemon import (
    GIB,
    LAYERS,
    NOTICES,
    RESIDENCY,
    RESIDENT,
    SAMPLES,
    WAIT_S,
    Asked,
    ScriptedDaemon,
    answer,
    held,
    scripted,
)
from tests.integration.terminal import ENVIRONMENT, TOOL, Terminal, begin, tool


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ScriptedDaemon]:
    with scripted(tmp_path) as daemon:
        yield daemon


def endless(asked: Asked) -> None:
    asked.stream(iter(lambda: m.Delta("x\n", 1), None), answer(""))


# --- what is printed -----------------------------------------------------------------------------------

QUICK: dict[str, Sequence[str]] = {
    "status": ["status"], "version": ["version"], "config": ["config"], "ps": ["ps"], "models": ["models"],
    "show": ["show", "gemma3"], "explain": ["explain", "gemma3"], "plan": ["plan", "gemma3", "--ctx", "128"],
    "import": ["import", "x.gguf"], "rm": ["rm", "gemma3"], "pull": ["pull", "box/Gemma3"],
    "load": ["load", "gemma3"], "unload": ["unload"],
    "switch": ["switch", "gemma3"], "pin": ["pin", "gemma3"], "unpin": ["unpin", "gemma3"],
    "top": ["top"], "cancel": ["cancel", "r7"], "infer": ["infer", "p", "--no-stream"],
    "embed": ["embed", "one"], "score": ["score", "one", "--tokens"], "tokenize": ["tokenize", "Once upon"],
    "detokenize": ["detokenize", "14014", "3324"], "sessions": ["sessions"],
    "sessions rm": ["sessions", "rm", "trip"], "swarm": ["swarm", "--models", "gemma3,large", "p"],
}  # fmt: skip
REPLIES: dict[str, type[m.Say]] = {
    "status": m.Status, "version": m.Version, "config": m.Config, "ps": m.Ps, "models": m.Models, "show": m.Show,
    "explain": m.Explain, "plan": m.Plan, "import": m.Imported, "rm": m.Removed, "load": m.Residency,
    "pull": m.Pulled, "unload": m.Unloaded, "switch": m.Residency, "pin": m.Pinned, "unpin": m.Pinned,
    "top": m.Top, "cancel": m.Cancelled, "infer": m.Answer, "embed": m.Embeddings, "score": m.Scored,
    "tokenize": m.Tokens, "detokenize": m.Detokenized, "sessions": m.Sessions, "sessions rm": m.SessionRemoved,
    "swarm": m.SwarmAnswer,
}  # fmt: skip


@pytest.mark.parametrize("verb", QUICK)
def test_json_is_the_daemons_reply_untouched(daemon: ScriptedDaemon, verb: str) -> None:
    """Also with a key that this tool has never heard of."""
    said = {**msgspec.to_builtins(SAMPLES[REPLIES[verb]]), "from_the_future": [1, {"k": None}]}

    def reply(asked: Asked) -> None:
        asked.raw(encode(Response(1, asked.id, Kind.REPLY)), msgspec.msgpack.encode(said))

    for op in ("daemon", "model", "infer", "request", "text", "sessions"):
        daemon.on.update({name: reply for name in daemon._new if name.startswith(op)})
    ran = tool(daemon.path, *QUICK[verb], "--json")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.count("\n") == 1
    assert json.loads(ran.stdout) == said


@pytest.mark.parametrize("verb", QUICK)
def test_text_goes_to_stdout_alone(daemon: ScriptedDaemon, verb: str) -> None:
    ran = tool(daemon.path, *QUICK[verb])
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.endswith("\n")
    assert "\x1b" not in ran.stdout


def test_tables(daemon: ScriptedDaemon) -> None:
    assert tool(daemon.path, "ps").stdout.splitlines() == [
        "NAME    STATE  SIZE     CTX   DEVICE  UNTIL  AGE",
        "gemma3  ready  1.0 GiB  4096  cpu     4m00s  3.0s",
        "",
        "REQUEST  OPERATION   STATE    MODEL   TOKENS  AGE",
        "r7       infer.text  running  gemma3  12      1.5s",
    ]
    assert tool(daemon.path, "ls").stdout.splitlines()[0] == "NAME    STATE  SIZE     QUANT   PARAMS  CTX"
    assert tool(daemon.path, "models", "-q").stdout == "gemma3\nqwen3\n"
    assert tool(daemon.path, "ps", "-q").stdout == "gemma3\n"
    assert "PATH" in tool(daemon.path, "models", "-o", "wide").stdout


def test_a_stream_is_printed_as_it_comes_and_ends_with_a_newline(daemon: ScriptedDaemon) -> None:
    ran = tool(daemon.path, "infer", "gemma3", "Once", "--temperature", "0", "-v")
    assert ran.stdout == "a b c\n"
    assert (
        ran.stderr == "gemma3: 5 prompt tokens (1 cached), 3 new (stop), first after 12ms, 100.0 tokens/s, seed 7\n"
    )
    assert daemon.heard("infer.text").body == m.Infer(prompt="Once", model="gemma3", temperature=0, stream=True)


def test_a_stream_as_json_is_one_object_a_line(daemon: ScriptedDaemon) -> None:
    lines = [json.loads(line) for line in tool(daemon.path, "infer", "p", "--json").stdout.splitlines()]
    assert lines[:3] == [{"chunk": msgspec.to_builtins(m.Delta(text, 1))} for text in ("a ", "b ", "c")]
    assert lines[3:] == [{"reply": msgspec.to_builtins(answer(""))}]


def test_events_are_a_line_each(daemon: ScriptedDaemon) -> None:
    shown = tool(daemon.path, "events", "--since", "0", "--no-follow").stdout.splitlines()
    assert len(shown) == 3
    assert shown[0].endswith(" 1 model.ready gemma3 ms=400")
    lines = [json.loads(line) for line in tool(daemon.path, "events", "--json").stdout.splitlines()]
    assert lines == [*({"chunk": msgspec.to_builtins(one)} for one in NOTICES), {"reply": {"seq": 3}}]


def test_a_prompt_is_read_from_stdin_as_it_is(daemon: ScriptedDaemon) -> None:
    assert tool(daemon.path, "infer", "-", stdin="zwei\nZeilen ü\n").returncode == 0
    assert daemon.heard("infer.text").body.prompt == "zwei\nZeilen ü\n"
    ran = subprocess.run(
        [*TOOL, "--socket", daemon.path, "infer", "-"],
        input=b"\xff\xfe",
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (ran.returncode, ran.stderr.split(b":")[0]) == (2, b"error[invalid_request]")


def test_an_argument_of_stray_bytes_is_refused_in_words(daemon: ScriptedDaemon) -> None:
    command = [*map(os.fsencode, TOOL), b"--socket", os.fsencode(daemon.path), b"infer", b"\xff"]
    ran = subprocess.run(command, capture_output=True, timeout=30, check=False)
    assert (ran.returncode, ran.stderr.split(b":")[0]) == (2, b"error[invalid_request]")


def test_chat_from_a_pipe_is_one_message(daemon: ScriptedDaemon) -> None:
    assert tool(daemon.path, "chat", "gemma3", "--system", "Be brief.", stdin="Hi\n").stdout == "a b c\n"
    assert daemon.heard("infer.chat").body.messages == [
        m.ChatMessage("system", "Be brief."),
        m.ChatMessage("user", "Hi"),
    ]


def test_chat_says_a_message_that_is_given(daemon: ScriptedDaemon) -> None:
    assert tool(daemon.path, "chat", "gemma3", "Hi there", stdin="not read").stdout == "a b c\n"
    body = daemon.heard("infer.chat").body
    assert (body.model, body.messages) == ("gemma3", [m.ChatMessage("user", "Hi there")])
    both = tool(daemon.path, "chat", "gemma3", "Hi", "--session", "trip", "--tool-result", "a=-", stdin="no")
    assert (both.returncode, "cannot say something with results" in both.stderr) == (2, True)


def test_a_dry_run_shows_the_plan_and_loads_nothing(daemon: ScriptedDaemon) -> None:
    ran = tool(daemon.path, "load", "gemma3", "--ctx", "4096", "--dry-run")
    assert ran.returncode == 0
    assert "weights   1.0 GiB" in ran.stdout
    assert re.search(r"fits +yes", ran.stdout)
    plan = SAMPLES[m.Plan]
    daemon.on["model.plan"] = lambda asked: asked.reply(msgspec.structs.replace(plan, fits=False))
    assert tool(daemon.path, "switch", "gemma3", "--dry-run").returncode == 5
    assert {asked.op for asked in daemon.log} == {"model.plan"}


def test_a_dry_run_is_refused_when_only_less_would_fit_and_less_is_not_wanted(daemon: ScriptedDaemon) -> None:
    plan = msgspec.structs.replace(
        SAMPLES[m.Plan], fits=False, learned_bytes=-GIB // 4, instead=m.Offer("gemma3", 2048, "q8_0", GIB)
    )
    daemon.on["model.plan"] = lambda asked: asked.reply(plan)
    ran = tool(daemon.path, "load", "gemma3", "--kv-type", "q4_0", "--dry-run")
    assert ran.returncode == 0
    assert "learned   -256 MiB" in ran.stdout
    assert re.search(r"instead +gemma3 with 2048 tokens of context, KV cache q8_0 \(1\.0 GiB\)", ran.stdout)
    assert daemon.heard("model.plan").body == m.PlanAsk("gemma3", kv_type="q4_0")
    assert tool(daemon.path, "load", "gemma3", "--exact", "--dry-run").returncode == 5
    assert tool(daemon.path, "plan", "gemma3", "--slots", "4").returncode == 0


def test_a_load_tells_what_was_not_given_and_what_still_holds_memory(daemon: ScriptedDaemon) -> None:
    outcome = msgspec.structs.replace(
        RESIDENCY, kv_type="q8_0", degraded=["2048 tokens of context, not 4096"], draining=["qwen3"], parked=["phi"]
    )
    daemon.on["model.load"] = lambda asked: asked.reply(outcome)
    assert tool(daemon.path, "load", "gemma3", "--exact", "--kv-type", "q8_0").stdout.splitlines() == [
        "gemma3: loaded in 450ms (4096 tokens of context, KV cache q8_0, 1.0 GiB)",
        "gemma3: less than asked for: 2048 tokens of context, not 4096",
        "qwen3: draining; it is unloaded once its running work has ended",
        "phi: parked; its context is freed, its process kept for a fast return",
    ]
    assert daemon.heard("model.load").body == m.Load("gemma3", kv_type="q8_0", exact=True)


@pytest.mark.parametrize(
    ("verb", "pinned", "changed", "said"),
    [
        ("pin", True, True, "pinned"), ("pin", True, False, "unchanged (pinned)"),
        ("unpin", False, True, "not pinned"), ("unpin", False, False, "unchanged (not pinned)"),
    ],
)  # fmt: skip
def test_pinning_twice_is_no_mistake(
    daemon: ScriptedDaemon, verb: str, pinned: bool, changed: bool, said: str
) -> None:
    daemon.on[f"model.{verb}"] = lambda asked: asked.reply(m.Pinned(asked.body.model, pinned, changed))
    ran = tool(daemon.path, verb, "gemma3")
    assert (ran.returncode, ran.stdout) == (0, f"gemma3: {said}\n")


def test_ps_marks_what_is_pinned_and_tells_limits_when_wide(daemon: ScriptedDaemon) -> None:
    row = msgspec.structs.replace(
        RESIDENT, pinned=True, until_ms=None, kv_type="q8_0", limit_bytes=2 * GIB, degraded=["less context", "q8_0"]
    )
    daemon.on["model.ps"] = lambda asked: asked.reply(m.Ps([row], []))
    assert tool(daemon.path, "ps").stdout.splitlines() == [
        "NAME    STATE         SIZE     CTX   DEVICE  UNTIL   AGE",
        "gemma3  ready,pinned  1.0 GiB  4096  cpu     <none>  3.0s",
    ]
    head, wide = (re.split(" {2,}", line) for line in tool(daemon.path, "ps", "-o", "wide").stdout.splitlines())
    said = dict(zip(head, wide, strict=True))
    assert (said["KV"], said["LIMIT"], said["DEGRADED"]) == ("q8_0", "2.0 GiB", "less context; q8_0")


def test_status_tells_the_level_the_layers_and_what_is_wrong(daemon: ScriptedDaemon) -> None:
    memory = m.MemoryView(3 * GIB, 2 * GIB, GIB, 30 << 20, 4 * GIB, "critical", LAYERS)
    status = msgspec.structs.replace(SAMPLES[m.Status], memory=memory, degraded=["no cgroup", "no pressure figures"])
    daemon.on["daemon.status"] = lambda asked: asked.reply(status)
    shown = [re.split(" {2,}", line) for line in tool(daemon.path, "status").stdout.splitlines()]
    for fact in (
        ["level", "critical"],
        ["limit", "3.0 GiB for models, of 4.0 GiB in all"],
        ["layer models", "1.0 GiB of 3.0 GiB committed, 512 MiB reserved, 1.5 GiB free"],
        ["layer working", "640 MiB of 512 MiB committed, 0 B reserved, 0 B free, 128 MiB over"],
        ["degraded", "no cgroup"],
        ["degraded", "no pressure figures"],
    ):
        assert fact in shown


def test_a_priority_is_passed_on(daemon: ScriptedDaemon) -> None:
    assert tool(daemon.path, "infer", "p", "--priority", "high").returncode == 0
    assert daemon.heard("infer.text").body.priority == "high"
    assert tool(daemon.path, "chat", "--priority", "low", stdin="Hi").returncode == 0
    assert daemon.heard("infer.chat").body.priority == "low"


def test_the_daemons_own_fix_is_shown(daemon: ScriptedDaemon) -> None:
    facts = ["gemma3 (3.0 GiB) is pinned", "safety buffer 0.5 GiB"]
    daemon.on["model.load"] = lambda asked: asked.error(
        "pinned", "cannot load qwen3: it needs 6.1 GiB, 4.2 GiB are free", because=facts, hint="h2qctl unpin gemma3"
    )
    ran = tool(daemon.path, "load", "qwen3")
    assert (ran.returncode, ran.stderr.splitlines()) == (
        5,
        [
            "error[pinned]: cannot load qwen3: it needs 6.1 GiB, 4.2 GiB are free",
            "  because: gemma3 (3.0 GiB) is pinned",
            "  because: safety buffer 0.5 GiB",
            "  fix: h2qctl unpin gemma3",
        ],
    )


def test_slow_verbs_tell_each_phase_on_stderr(daemon: ScriptedDaemon) -> None:
    def slowly(asked: Asked) -> None:
        asked.progress("queued", position=2)
        daemon.streams[asked.key] = asked

    daemon.on["model.load"] = slowly
    process = begin(daemon.path, "load", "gemma3")
    assert process.stderr is not None
    assert process.stderr.readline() == "queued (place 2 in the queue)\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=WAIT_S)


def test_a_hostile_name_moves_no_cursor(daemon: ScriptedDaemon) -> None:
    row = msgspec.structs.replace(SAMPLES[m.Ps], models=[m.ResidentRow("\x1b[2J\u202e", "ready")], requests=[])
    daemon.on["model.ps"] = lambda asked: asked.reply(row)
    assert "\\x1b[2J\\u202e" in tool(daemon.path, "ps").stdout


# --- errors and exit statuses --------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_code_has_its_exit_status(daemon: ScriptedDaemon, code: str) -> None:
    daemon.on["model.unload"] = lambda asked: asked.error(code, "cannot do it", because=["1 of 2"])
    ran = tool(daemon.path, "unload")
    hint = CODES[code].hint
    assert ran.returncode == CODES[code].exit_status
    assert ran.stdout == ""
    assert ran.stderr == f"error[{code}]: cannot do it\n  because: 1 of 2\n  fix: {hint}\n"


def test_an_error_as_json_is_one_object_on_stderr(daemon: ScriptedDaemon) -> None:
    daemon.on["model.unload"] = lambda asked: asked.error("in_use", "cannot", request="r3")
    ran = tool(daemon.path, "unload", "--json")
    assert (ran.returncode, ran.stdout) == (5, "")
    assert json.loads(ran.stderr) == {
        "code": "in_use", "message": "cannot", "hint": CODES["in_use"].hint, "because": [], "retryable": False,
        "retry_after_ms": None, "request": "r3",
    }  # fmt: skip


def test_a_dead_daemon_is_told_at_once_with_the_fix(tmp_path: Path) -> None:
    began = time.monotonic()
    ran = tool(str(tmp_path / "none.sock"), "ps")
    assert time.monotonic() - began < 2
    assert ran.returncode == 69
    assert ran.stderr.startswith("error[unreachable]: cannot reach the daemon: there is no socket at ")
    assert "fix: start it with: systemctl start h2qd" in ran.stderr


def test_a_timeout_has_its_status(daemon: ScriptedDaemon) -> None:
    daemon.on["model.load"] = held(daemon)
    assert tool(daemon.path, "load", "gemma3", "--timeout", "0.1").returncode == 124
    daemon.heard("request.cancel")


def test_wrong_usage(daemon: ScriptedDaemon) -> None:
    assert tool(daemon.path).returncode == 2
    assert tool(daemon.path, "load").returncode == 2
    assert tool(daemon.path, "infer", "p", "--top-k", "many").returncode == 2
    ran = tool(daemon.path, "swtich", "gemma3")
    assert (ran.returncode, ran.stderr.splitlines()[1]) == (2, "  fix: h2qctl switch")
    assert tool(daemon.path, "help", "lood").returncode == 2
    assert daemon.log == []


def test_help_and_version_need_no_daemon(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "none.sock")
    for words in (["--help"], ["help"], ["help", "load"], ["load", "--help"], ["--version"], ["completion", "bash"]):
        ran = tool(nowhere, *words)
        assert (ran.returncode, ran.stderr) == (0, ""), words
        assert "h2qctl" in ran.stdout


def test_version_tells_its_own_even_when_the_daemon_is_down(tmp_path: Path) -> None:
    ran = tool(str(tmp_path / "none.sock"), "version")
    assert ran.returncode == 69
    assert ran.stdout.startswith("h2qctl ")


def test_doctor_finds_what_is_wrong_and_tells_the_fix(daemon: ScriptedDaemon, tmp_path: Path) -> None:
    well = tool(daemon.path, "doctor")
    assert well.returncode == 0
    assert "fix: swapoff -a" in well.stdout
    checks = json.loads(tool(daemon.path, "doctor", "--json").stdout)["checks"]
    assert [check["name"] for check in checks] == ["socket", "connection", "answer", "versions", "cgroup", "swap"]
    daemon.on["daemon.doctor"] = lambda asked: asked.reply(m.Doctor([m.Check("disk", "fail", "full", "make room")]))
    assert tool(daemon.path, "doctor").returncode == 1
    absent = tool(str(tmp_path / "none.sock"), "doctor")
    assert (absent.returncode, "there is none" in absent.stdout, "fix: systemctl" in absent.stdout) == (1, True, True)
    plain = tmp_path / "plain"
    plain.touch()
    assert "not a socket" in tool(str(plain), "doctor").stdout
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "dead.sock"))
    dead.close()
    assert "nothing listens" in tool(str(tmp_path / "dead.sock"), "doctor", "--json").stdout


# --- signals, pipes and terminals ----------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("words", [["load", "gemma3"], ["infer", "p"], ["infer", "p", "--no-stream"]])
def test_a_signal_cancels_at_the_daemon(
    daemon: ScriptedDaemon, words: list[str], number: signal.Signals, status: int
) -> None:
    op = {"load": "model.load", "infer": "infer.text"}[words[0]]
    daemon.on[op] = held(daemon)
    process = begin(daemon.path, *words)
    asked = daemon.heard(op)
    _waits(process)
    began = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == status
    assert "Traceback" not in errors
    assert daemon.heard("request.cancel").body == m.Cancel(id=asked.id)
    assert time.monotonic() - began < 2


def _waits(process: "subprocess.Popen[str]") -> None:
    """Until it has said that it waits: from then on, not from its question on, it hears an interrupt and cancels."""
    assert process.stderr is not None
    assert process.stderr.readline().startswith("queued")


def test_an_interrupted_client_waits_a_second_for_a_daemon_that_does_not_answer(daemon: ScriptedDaemon) -> None:
    daemon.on["model.load"] = held(daemon)
    daemon.on["request.cancel"] = lambda _: None
    process = begin(daemon.path, "load", "gemma3")
    _waits(process)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert time.monotonic() - began > 0.9, "and not for ever: it has ended"


def test_a_reader_that_leaves_ends_the_request_quietly(daemon: ScriptedDaemon) -> None:
    daemon.on["infer.text"] = endless
    process = begin(daemon.path, "infer", "p")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "x\n"
    process.stdout.close()
    assert process.wait(WAIT_S) == 141
    assert process.stderr.read() == ""
    process.stderr.close()
    daemon.heard("request.cancel")


def test_output_that_is_closed_from_the_start_does_not_fail(daemon: ScriptedDaemon) -> None:
    ran = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *TOOL, "--socket", daemon.path, "ps"],
        stderr=subprocess.PIPE, timeout=30, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_a_conversation_on_a_terminal(daemon: ScriptedDaemon) -> None:
    terminal = Terminal("--socket", daemon.path, "chat", "gemma3")
    terminal.until(">>> ")
    terminal.type("one\n")
    terminal.until("a b c")
    terminal.until(">>> ")
    daemon.on["infer.chat"] = endless
    terminal.type("two\n")
    terminal.until("x\r\nx")
    terminal.type("\x03")
    terminal.until("(stopped)")
    terminal.until(">>> ")
    daemon.on["infer.chat"] = lambda asked: asked.error("worker_crashed")
    terminal.type("three\n")
    terminal.until("worker_crashed")
    terminal.until(">>> ")
    del daemon.on["infer.chat"]
    terminal.type("/clear\n")
    terminal.until(">>> ")
    terminal.type("four\n")
    terminal.until("a b c")
    terminal.until(">>> ")
    terminal.type("\x04")
    assert terminal.status() == 0
    one, two, three, four = (daemon.heard("infer.chat").body.messages for _ in range(4))
    assert [turn.content for turn in one] == ["one"]
    assert [turn.content for turn in two] == ["one", "a b c", "two"]
    assert [turn.content for turn in three[:3]] == ["one", "a b c", "two"]
    assert (three[3].role, three[3].content.startswith("x\n")) == ("assistant", True)
    assert three[4].content == "three"
    assert [turn.content for turn in four] == ["four"]


def test_a_terminal_gets_a_live_line_short_tables_and_no_escapes_of_others(daemon: ScriptedDaemon) -> None:
    def load(asked: Asked) -> None:
        asked.progress("loading", model="gemma3", fraction=0.5)
        asked.reply()

    daemon.on["model.load"] = load
    live = Terminal("--socket", daemon.path, "load", "gemma3")
    assert live.status() == 0
    assert "\r\x1b[Kloading gemma3 [##########..........]  50%" in live.seen
    assert "\r\x1b[Kgemma3: loaded" in live.seen
    row = msgspec.structs.replace(SAMPLES[m.Ps], models=[m.ResidentRow("n" * 128, "ready")], requests=[])
    daemon.on["model.ps"] = lambda asked: asked.reply(row)
    table = Terminal("--socket", daemon.path, "ps")
    assert table.status() == 0
    assert max(len(line) for line in table.seen.splitlines()) == 80
    daemon.on["infer.text"] = lambda asked: asked.reply(answer("\x1b[2Jhi"))
    text = Terminal("--socket", daemon.path, "infer", "p", "--no-stream")
    assert text.status() == 0
    assert text.seen == "\\x1b[2Jhi\r\n"


def test_colour_is_for_terminals_that_want_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = str(tmp_path / "none.sock")
    coloured = Terminal("--socket", nowhere, "ps")
    assert coloured.status() == 69
    assert coloured.seen.startswith("\x1b[1;31merror[unreachable]:\x1b[0m ")
    monkeypatch.setitem(ENVIRONMENT, "NO_COLOR", "1")
    plain = Terminal("--socket", nowhere, "ps")
    assert plain.status() == 69
    assert plain.seen.startswith("error[unreachable]: ")


def thoughtful(asked: Asked) -> None:
    chunks = [m.Delta("", 1, thinking="let me\x1b "), m.Delta("", 1, thinking="see"), m.Delta("Yes", 1)]
    asked.stream(chunks, msgspec.structs.replace(answer("."), thinking=""))


def test_thoughts_are_dim_on_a_terminal_and_nowhere_else(
    daemon: ScriptedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.on["infer.text"] = thoughtful
    shown = Terminal("--socket", daemon.path, "infer", "p")
    assert shown.status() == 0
    text = shown.seen.replace("\r\x1b[K", "")
    assert text == "\x1b[2mlet me\\x1b \x1b[0m\x1b[2msee\x1b[0m\r\n\r\nYes.\r\n"
    assert tool(daemon.path, "infer", "p").stdout == "Yes.\n"
    chunks = [json.loads(line)["chunk"] for line in tool(daemon.path, "infer", "p", "--json").stdout.splitlines()[:3]]
    assert [chunk["thinking"] for chunk in chunks] == ["let me\x1b ", "see", ""]
    monkeypatch.setitem(ENVIRONMENT, "NO_COLOR", "1")
    plain = Terminal("--socket", daemon.path, "infer", "p")
    assert plain.status() == 0
    assert "let me" not in plain.seen, "it could not be told from the answer"


def test_who_sits_at_the_terminal_says_what_came_of_a_call(daemon: ScriptedDaemon, tmp_path: Path) -> None:
    def calling(asked: Asked) -> None:
        if asked.body.messages[-1].role == "tool":
            asked.stream([m.Delta("No.", 1)], answer(""))
            return
        calls = [m.ToolCall("a", "rain", '{"in": "Rome\x1b"}'), m.ToolCall("b", "rain", "{}")]
        asked.stream([], msgspec.structs.replace(answer(""), finish="tool_calls", tool_calls=calls))

    daemon.on["infer.chat"] = calling
    (tmp_path / "tools.json").write_text('[{"name": "rain"}]')
    terminal = Terminal("--socket", daemon.path, "chat", "lab/large", "--tools", str(tmp_path / "tools.json"))
    terminal.until(">>> ")
    terminal.type("Is it raining?\n")
    terminal.until('a rain({"in": "Rome\\x1b"})')
    terminal.until("rain gives: ")
    terminal.type("no\n")
    terminal.until("rain gives: ")
    terminal.type("\x04")  # an interrupt that comes between a prompt and the wait for keys goes unheard in readline
    terminal.until("No.")
    terminal.until(">>> ")
    terminal.type("\x04")
    assert terminal.status() == 0
    first, second = daemon.heard("infer.chat").body, daemon.heard("infer.chat").body
    assert first.tools == [m.Tool("rain")]
    assert [(one.role, one.content, one.tool_call_id, one.name) for one in second.messages[2:]] == [
        ("tool", "no", "a", "rain"),
        ("tool", "The call was not made.", "b", "rain"),
    ]


def test_a_result_needs_a_conversation_that_called(daemon: ScriptedDaemon) -> None:
    refused = tool(daemon.path, "chat", "--tool-result", "a=-", stdin="no")
    assert refused.returncode == 2
    assert "without a session" in refused.stderr
    both = tool(daemon.path, "chat", "--session", "trip", "--tool-result", "a=-", "--image", "x.png", stdin="no")
    assert both.returncode == 2
    assert "cannot show an image with results of calls" in both.stderr
    assert daemon.log == []


def test_the_exit_status_of_a_code_of_the_future_is_a_plain_failure() -> None:
    assert H2qError.of(m.ErrorReply("unheard_of", "cannot")).exit_status == 1
