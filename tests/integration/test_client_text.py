"""The verbs beside infer and chat that work on text, and the named conversations that the tool keeps."""

import json
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from h2qctl import Client, H2qError, turns
from h2qctl.verbs.embed import portions
from h2qd.wire import messages as m
from h2qd.wire.limits import TEXTS_MAX
from tests.integration.scripted_daemon import GIB, LOGPROBS, SAMPLES, SWARM, Asked, ScriptedDaemon, answer, scripted
from tests.integration.terminal import ENVIRONMENT, Terminal, tool


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ScriptedDaemon]:
    with scripted(tmp_path) as daemon:
        yield daemon


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where conversations are kept, for the tool and for this process."""
    monkeypatch.setitem(ENVIRONMENT, "XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "h2qctl" / "sessions"


# --- vectors, likelihood, tokens -----------------------------------------------------------------------


def counted(asked: Asked) -> None:
    """A vector that tells its text's length."""
    vectors = [[float(len(text)), 0.5, 0.0, 0.0, 0.0, 1.0] for text in asked.body.texts]
    asked.reply(msgspec.structs.replace(SAMPLES[m.Embeddings], vectors=vectors))


def test_vectors_are_told_by_how_they_begin(daemon: ScriptedDaemon) -> None:
    daemon.on["infer.embed"] = counted
    words = ["--model", "gemma3", "--raw", "--truncate", "--adapter", "polite", "--adapter", "rude=-0.5"]
    ran = tool(daemon.path, "embed", "one", "three", *words)
    assert ran.stdout.splitlines() == [
        "gemma3: 2 of 6 dimensions, pooling mean, 5 tokens",
        "  +3.00000 +0.50000 +0.00000 +0.00000 …",
        "  +5.00000 +0.50000 +0.00000 +0.00000 …",
    ]
    assert daemon.heard("infer.embed").body == m.Embed(
        texts=["one", "three"],
        model="gemma3",
        normalize=False,
        overflow="truncate",
        adapters=[m.AdapterUse("polite"), m.AdapterUse("rude", -0.5)],
    )


def test_a_file_of_texts_becomes_a_file_of_vectors(daemon: ScriptedDaemon, tmp_path: Path) -> None:
    daemon.on["infer.embed"] = counted
    texts = ["x" * number for number in range(1, TEXTS_MAX + 7)]
    (tmp_path / "in").write_text("\n\n".join(texts))
    ran = tool(daemon.path, "embed", "--file", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    assert (ran.returncode, len(ran.stdout.splitlines())) == (0, 2)
    rows = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [row["text"] for row in rows] == texts
    assert [row["vector"][0] for row in rows] == [float(len(text)) for text in texts]
    assert [len(daemon.heard("infer.embed").body.texts) for _ in range(2)] == [TEXTS_MAX, 6]


def test_texts_are_portioned_by_number_and_by_length() -> None:
    assert [len(portion) for portion in portions(["x"] * (2 * TEXTS_MAX + 1))] == [TEXTS_MAX, TEXTS_MAX, 1]
    long = "x" * 300_000
    assert list(portions([long, long, long])) == [[long], [long], [long]]
    assert list(portions([])) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["embed"], "nothing"), (["embed", "a", "--file", "b"], "at once"),
        (["embed", "--file", "/nowhere"], "/nowhere"),
        (["embed", "a", "--output", "/nowhere/out"], "/nowhere/out"), (["score"], "text or a file"),
        (["score", "a", "--adapter", "=2"], "NAME=NUMBER"), (["embed", "a", "--adapter", "polite=x"], "NAME=NUMBER"),
        (["score", "a", "--file", "b"], "text or a file"), (["detokenize", "12", "-x"], "detokenize"),
        (["detokenize", "1e3"], "1e3"), (["detokenize", "٣"], "٣"), (["sessions", "rm"], "name"),
        (["sessions", "rm", "../trip"], "../trip"), (["chat", "--session", "a/b"], "a/b"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_in_words(daemon: ScriptedDaemon, words: list[str], said: str) -> None:
    ran = tool(daemon.path, *words, stdin="Hi")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert said in ran.stderr
    assert daemon.log == []


def test_a_score_has_its_tokens_and_figures(daemon: ScriptedDaemon, tmp_path: Path) -> None:
    (tmp_path / "book").write_text("Once upon")
    ran = tool(daemon.path, "score", "--file", str(tmp_path / "book"), "--window", "512", "--tokens")
    assert ran.stdout.splitlines() == [
        "ID     TEXT     LOGPROB  SHARE  LIKELIEST",
        '14014  "Once"   -0.500   60.7%  "Once" 60.7%  "In\\n" 28.7%',
        '3324   " upon"  -1.000   36.8%  <none>',
        "",
        "model       gemma3",
        "tokens      2",
        "logprob     -1.5000",
        "perplexity  2.1170 +/- 0.2500",
    ]
    assert daemon.heard("infer.score").body == m.Score(text="Once upon", window=512, logprobs=True)
    assert tool(daemon.path, "score", "-", "--context", "c", "--adapter", "polite=2", stdin="p\n").returncode == 0
    assert daemon.heard("infer.score").body == m.Score(
        text="p\n", context="c", adapters=[m.AdapterUse("polite", 2.0)]
    )


def test_a_swarm_has_a_row_for_each_model_and_their_answer_last(daemon: ScriptedDaemon) -> None:
    ran = tool(daemon.path, "swarm", "--models", "gemma3, large,broken", "-", "--deadline", "2", stdin="Capital?")
    assert ran.returncode == 0, "somebody answered"
    assert ran.stdout.splitlines() == [
        "MODEL              STATE   TOKENS  TIME    ANSWER",
        "gemma3             stop    3       45ms    Paris.",
        "small (for large)  length  3       45ms    paris",
        "broken             no_fit  <none>  <none>  cannot load broken: it needs 6.1 GiB",
        "",
        "majority: gemma3, small (2 of 2 say so, agreement 100%)",
        "judge failed: it said 'no'",
        "",
        " Paris.",
    ]
    assert daemon.heard("infer.swarm").body == m.Swarm(
        models=["gemma3", "large", "broken"], prompt="Capital?", deadline_ms=2000
    )
    words = ["--chat", "--embedder", "minilm", "--max-tokens", "9", "--seed", "1", "--no-speculate"]
    assert tool(daemon.path, "swarm", "--models", "a,b", "Hi", *words).returncode == 0
    assert daemon.heard("infer.swarm").body == m.Swarm(
        models=["a", "b"],
        messages=[m.ChatMessage("user", "Hi")],
        method="medoid",
        embedder="minilm",
        max_tokens=9,
        seed=1,
        speculate=False,
    )


def test_a_swarm_fits_a_terminal_and_fails_where_nobody_answers(daemon: ScriptedDaemon) -> None:
    loud = msgspec.structs.replace(SWARM.answers[0], text="a \x1b[31mred " + "very " * 50 + "long answer")
    alone = msgspec.structs.replace(SWARM, answers=[loud], consensus=None)
    daemon.on["infer.swarm"] = lambda asked: asked.reply(alone)
    terminal = Terminal("--socket", daemon.path, "swarm", "--models", "a", "--method", "none", "Hi")
    shown = terminal.until("…")
    assert terminal.status() == 0
    rows = [line.rpartition("\x1b[K")[2] for line in shown.splitlines() if "gemma3" in line]
    assert [len(row) for row in rows] == [80]
    assert "\\x1b[31mred" in rows[0]
    daemon.on["infer.swarm"] = lambda asked: asked.error("no_such_model", because=["a: no", "b: no"])
    ran = tool(daemon.path, "swarm", "--models", "a,b", "Hi")
    assert (ran.returncode, ran.stdout) == (4, "")
    assert "because: b: no" in ran.stderr


def test_tokens_there_and_back(daemon: ScriptedDaemon) -> None:
    assert tool(daemon.path, "tokenize", "Once upon").stdout == "14014 3324\n"
    assert tool(daemon.path, "tokenize", "--count", "-", stdin="Once upon").stdout == "2\n"
    shown = tool(daemon.path, "tokenize", "--pieces", "--special", "Once upon").stdout.splitlines()
    assert shown == ["ID     TEXT", '14014  "Once"', '3324   " upon"']
    asked = [daemon.heard("text.tokenize").body for _ in range(3)]
    assert asked[2] == m.Tokenize(text="Once upon", pieces=True, special=True)
    assert tool(daemon.path, "detokenize", "-", stdin="14014, 3324\n").stdout == "Once upon\n"
    assert daemon.heard("text.detokenize").body == m.Detokenize(tokens=[14014, 3324])


def test_how_likely_an_answer_was_is_told_after_it(daemon: ScriptedDaemon) -> None:
    pieces = [m.Delta(one.text, 1, [one]) for one in LOGPROBS]
    usage = m.Usage(5, 3, 1, truncated_tokens=4, drafted_tokens=6, accepted_tokens=2)
    end = msgspec.structs.replace(answer(""), usage=usage)
    daemon.on["infer.text"] = lambda asked: asked.stream(pieces, end)
    ran = tool(daemon.path, "infer", "p", "--logprobs", "2", "--session", "trip", "-v")
    assert ran.stdout == "Once upon\n"
    table = ran.stderr.splitlines()
    assert (table[0].split(), table[2].split()) == (
        ["ID", "TEXT", "LOGPROB", "SHARE", "LIKELIEST"],
        ["3324", '"', 'upon"', "-1.000", "36.8%", "<none>"],
    )
    assert table[3].startswith("gemma3: 5 prompt tokens (1 cached, 4 left out), 3 new (stop, 2 of 6 guessed), first")
    assert daemon.heard("infer.text").body == m.Infer(prompt="p", stream=True, session="trip", logprobs=2)
    quiet = tool(daemon.path, "infer", "p", "--logprobs", "2", "--json")
    assert quiet.stderr == ""
    assert json.loads(quiet.stdout.splitlines()[0])["chunk"]["logprobs"][0]["token"] == 14014


# --- conversations that are gone on with ---------------------------------------------------------------


def contents(request: m.Chat) -> list[str]:
    return [turn.content for turn in request.messages]


def test_a_conversation_goes_on_where_it_was(daemon: ScriptedDaemon, kept: Path) -> None:
    first = tool(daemon.path, "chat", "gemma3", "--session", "trip", "--system", "Be brief.", stdin="one\n")
    assert (first.returncode, first.stdout, first.stderr) == (0, "a b c\n", "")
    second = tool(daemon.path, "chat", "--session", "trip", "--no-stream", stdin="two\n")
    assert second.stderr == "trip: goes on after 1 turn with gemma3\n"
    asked = [daemon.heard("infer.chat").body for _ in range(2)]
    assert contents(asked[0]) == ["Be brief.", "one"]
    assert contents(asked[1]) == ["Be brief.", "one", "a b c", "two"]
    assert [(one.session, one.model) for one in asked] == [("trip", "gemma3")] * 2
    file = kept / "trip.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    assert not list(kept.glob("*.new"))
    other = tool(daemon.path, "chat", "qwen3", "--session", "trip", "--system", "Be long.", stdin="three")
    assert other.stderr == "trip: goes on after 2 turns with qwen3\n"
    asked[0] = daemon.heard("infer.chat").body
    assert (contents(asked[0])[:2], asked[0].model) == (["Be long.", "one"], "qwen3")
    quiet = tool(daemon.path, "chat", "--session", "trip", "--json", stdin="four")
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert contents(daemon.heard("infer.chat").body)[-1] == "four"
    found = turns.read("trip")
    assert found is not None
    assert (found.turns, found.messages[-1]) == (4, m.ChatMessage("assistant", "a b c"))


def test_a_conversation_on_a_terminal_is_kept_turn_by_turn(daemon: ScriptedDaemon) -> None:
    words = ("--socket", daemon.path, "chat", "--session", "trip")
    terminal = Terminal(*words)
    terminal.until(">>> ")
    terminal.type("one\n")
    terminal.until("a b c")
    terminal.until(">>> ")
    found = turns.read("trip")
    assert found is not None
    assert (found.turns, found.model) == (1, "gemma3")
    refused = tool(daemon.path, "chat", "--session", "trip", stdin="two")
    assert (refused.returncode, refused.stderr.split(":")[0]) == (5, "error[in_use]")
    assert tool(daemon.path, "sessions", "rm", "trip").returncode == 5
    daemon.on["infer.chat"] = lambda asked: asked.error("worker_crashed")
    terminal.type("two\n")
    terminal.until("worker_crashed")
    terminal.until(">>> ")
    terminal.type("\x04")
    assert terminal.status() == 0
    del daemon.on["infer.chat"]
    again = Terminal(*words)
    again.until("trip: goes on after 1 turn with gemma3")
    again.until(">>> ")
    again.type("/clear\n")
    again.until(">>> ")
    again.type("\x04")
    assert again.status() == 0
    found = turns.read("trip")
    assert found is not None
    assert found.messages == []


def test_a_damaged_conversation_is_told_with_the_fix_and_can_be_forgotten(daemon: ScriptedDaemon, kept: Path) -> None:
    kept.mkdir(parents=True)
    for damage in (b"", b"{", b"[" * 100_000, b'{"h2qctl_session":2,"model":null,"messages":[]}', b"\xff" * 10):
        (kept / "trip.json").write_bytes(damage)
        ran = tool(daemon.path, "chat", "--session", "trip", stdin="Hi")
        assert (ran.returncode, ran.stdout) == (2, "")
        assert f"{kept}/trip.json is damaged" in ran.stderr
        assert "h2qctl sessions rm trip" in ran.stderr
    assert daemon.log == []
    assert re.search(r"trip .* damaged\n", tool(daemon.path, "sessions").stdout)
    assert tool(daemon.path, "sessions", "rm", "trip").stdout.endswith("and the turns\n")
    assert not list(kept.iterdir())


def test_a_conversation_that_is_too_long_is_not_kept_and_the_old_state_stays(kept: Path) -> None:
    turns.write("trip", None, [m.ChatMessage("user", "one")])
    with pytest.raises(H2qError, match="too many") as error:
        turns.write("trip", None, [m.ChatMessage("user", "x" * (4 << 20))] * 3)
    assert error.value.code == "too_large"
    found = turns.read("trip")
    assert found is not None
    assert found.turns == 1
    assert [file.name for file in kept.iterdir()] == ["trip.json"]


def test_sessions_known_there_and_here_are_listed_together(daemon: ScriptedDaemon) -> None:
    now_ms = round(time.time() * 1000)
    rows = [m.SessionRow("trip", "gemma3", 300, 3 << 20, now_ms - 65_000, os.getuid()),
            m.SessionRow("trip", "qwen3", 20, 1 << 20, now_ms - 3_600_000, os.getuid()),
            m.SessionRow("home", "qwen3", 20, 1 << 20, now_ms, os.getuid() + 1)]  # fmt: skip
    daemon.on["sessions.list"] = lambda asked: asked.reply(m.Sessions(rows, 4 << 20, GIB))
    turns.write("trip", "qwen3", [m.ChatMessage("user", "one"), m.ChatMessage("assistant", "two")])
    turns.write("home", "phi", [m.ChatMessage("user", "one")])
    shown = [re.split(" {2,}", line) for line in tool(daemon.path, "sessions").stdout.splitlines()]
    assert shown[0] == ["SESSION", "MODEL", "TOKENS", "SIZE", "AGE", "TURNS"]
    assert [row[:4] + row[5:] for row in shown[1:5]] == [
        ["trip", "gemma3", "300", "3.0 MiB", "1"],
        ["trip", "qwen3", "20", "1.0 MiB", "1"],
        ["home", "qwen3", "20", "1.0 MiB", "<none>"],
        ["home", "phi", "<none>", "<none>", "1"],
    ]
    assert shown[-1] == ["4.0 MiB of 1.0 GiB used"]
    assert tool(daemon.path, "sessions", "-q").stdout == "trip\nhome\n"
    assert "UID" in tool(daemon.path, "sessions", "-o", "wide").stdout


def test_forgetting_takes_the_turns_too_unless_one_model_is_meant(daemon: ScriptedDaemon) -> None:
    turns.write("trip", None, [m.ChatMessage("user", "one")])
    ran = tool(daemon.path, "sessions", "rm", "trip", "--model", "gemma3")
    assert ran.stdout == "trip: forgotten: the cache of 1 model (3.0 MiB)\n"
    assert daemon.heard("sessions.remove").body == m.OfSession("trip", "gemma3")
    assert turns.read("trip") is not None
    daemon.on["sessions.remove"] = lambda asked: asked.reply(m.SessionRemoved("trip", 0, 0))
    assert tool(daemon.path, "sessions", "rm", "trip").stdout == "trip: forgotten: the turns\n"
    assert tool(daemon.path, "sessions", "rm", "trip").stdout == "trip: unchanged (nothing was kept)\n"
    with Client(daemon.path) as client:
        assert client.remove_session("trip").files == 0
