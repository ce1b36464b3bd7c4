import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import shtab

from h2qctl import parser, sampling
from h2qctl.errors import H2qError
from h2qd.wire.messages import AdapterUse

VERB_FILES = Path(parser.__file__).parent / "verbs"
IN_A_TERMINAL = "import sys; from h2qctl.__main__ import main; status = main({argv!r}); {then}"


def test_every_file_in_verbs_is_a_verb_and_every_verb_has_a_file() -> None:
    files = {path.stem.rstrip("_") for path in VERB_FILES.glob("[a-z]*.py")}
    assert files == set(parser.VERBS)


@pytest.mark.parametrize("name", parser.VERBS)
def test_every_verb_has_help_with_an_example_that_parses(name: str) -> None:
    verb = parser.load(name)
    shown = parser.verb_parser(name, verb).format_help()
    assert verb.SUMMARY.split(";", maxsplit=1)[0].split(":", maxsplit=1)[0] in " ".join(shown.split())
    assert verb.EXAMPLES
    for example in verb.EXAMPLES:
        assert example in shown
        (command,) = (part for part in re.split(r" [|<>] ", example) if part.startswith("h2qctl "))
        if command != "h2qctl --version":
            assert parser.parse(shlex.split(command)[1:])[0] is verb


@pytest.mark.parametrize("name", parser.VERBS)
def test_every_verb_takes_the_common_options_on_either_side(name: str) -> None:
    needed = {"show": ["m"], "explain": ["m"], "plan": ["m"], "load": ["m"], "switch": ["m"], "import": ["p"],
              "rm": ["m"], "pull": ["r/m"], "pin": ["m"], "unpin": ["m"],
              "infer": ["p"], "cancel": ["r"], "completion": ["zsh"], "tokenize": ["t"],
              "detokenize": ["1"], "batch": ["i"], "swarm": ["--models", "a", "p"]}.get(name, [])  # fmt: skip
    common = ["--socket", "/s", "--timeout", "2.5", "--json"]
    for argv in ([*common, name, *needed], [name, *needed, *common], [*common[:2], name, *common[2:], *needed]):
        _, args = parser.parse(argv)
        assert (args.socket, args.timeout, args.json) == ("/s", 2.5, True)


@pytest.mark.parametrize(
    ("argv", "model", "prompt"),
    [
        (["hi"], None, "hi"),
        (["gemma3", "hi"], "gemma3", "hi"),
        (["gemma3", "--seed", "1", "hi"], "gemma3", "hi"),
        (["--seed", "1", "-"], None, "-"),
        (["--seed", "1", "--", "-5 degrees"], None, "-5 degrees"),
    ],
)
def test_one_word_is_the_prompt_and_two_are_model_and_prompt(argv: list[str], model: str | None, prompt: str) -> None:
    _, args = parser.parse(["infer", *argv])
    assert (args.model, args.prompt) == (model, prompt)


def test_a_mistyped_verb_is_answered_with_the_nearest() -> None:
    for typed, meant in (("laod", "load"), ("swich", "switch"), ("lst", "list"), ("stats", "status")):
        with pytest.raises(H2qError) as error:
            parser.parse([typed])
        assert error.value.exit_status == 2
        assert error.value.hint == f"h2qctl {meant}"


@pytest.mark.parametrize("value", ["0", "0.09", "3601", "nan", "inf", "-1", "often"])
def test_an_interval_is_neither_a_storm_nor_for_ever(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parser.parse(["top", f"-n={value}"])
    assert left.value.code == 2
    assert "--interval" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["load", "m", "--kv-type", "q3_0"], ["plan", "m", "--kv-type", "F16"],
                                  ["infer", "p", "--priority", "urgent"], ["chat", "m", "--overflow", "grow"],
                                  ["sessions", "--quiet", "drop"],
                                  ["tokenize", "t", "--ids", "--count"], ["top", "--once", "--watch"]])  # fmt: skip
def test_a_value_that_does_not_exist_is_wrong_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parser.parse(argv)
    assert left.value.code == 2
    assert argv[2].removeprefix("--once") in capsys.readouterr().err


@pytest.mark.parametrize(
    "word", ["--concurrency=0", "--concurrency=-1", "--retries=1001", "--timeout-each=nan", "--wait=0", "--wait=long"]
)
def test_a_batch_has_bounds(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parser.parse(["batch", "in", word])
    assert left.value.code == 2
    assert word.split("=", maxsplit=1)[0] in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_a_timeout_is_a_time(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parser.parse([f"--timeout={value}", "ps"])
    assert left.value.code == 2
    assert "--timeout" in capsys.readouterr().err


def test_sampling_options_that_were_not_chosen_are_not_said() -> None:
    _, args = parser.parse(["infer", "hi"])
    assert set(sampling.options(args).values()) == {None}


def test_all_sampling_options_reach_the_client(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    argv = (
        "infer hi --max-tokens 5 --temperature 0 --top-k 1 --top-p 0.5 --min-p 0.1 --repeat-penalty 1.1 "
        f"--repeat-last-n 8 --seed 0 --stop A --stop B --ignore-eos --logit-bias 12=-5 "
        f"--logit-bias 7=1 --json-schema {schema} --priority low --session trip --overflow shift --logprobs 3 "
        "--no-speculate --adapter polite --adapter rude=-0.5"
    )
    _, args = parser.parse(shlex.split(argv))
    assert sampling.options(args) == {
        "max_tokens": 5, "temperature": 0.0, "top_k": 1, "top_p": 0.5, "min_p": 0.1, "repeat_penalty": 1.1,
        "repeat_last_n": 8, "seed": 0, "stop": ["A", "B"], "ignore_eos": True, "logit_bias": {"12": -5.0, "7": 1.0},
        "grammar": None, "json_schema": '{"type": "object"}', "priority": "low",
        "session": "trip", "overflow": "shift", "logprobs": 3, "speculate": False,
        "window": None,
        "adapters": [AdapterUse("polite"), AdapterUse("rude", -0.5)],
    }  # fmt: skip


def test_a_schema_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    _, args = parser.parse(["infer", "hi", "--grammar", str(tmp_path / "none.gbnf")])
    with pytest.raises(H2qError, match=r"none\.gbnf"):
        sampling.options(args)


def test_the_overview_names_every_verb() -> None:
    shown = parser.overview()
    assert all(re.search(rf"^  {verb} +\S", shown, re.MULTILINE) for verb in parser.VERBS)
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_scripts_know_every_verb(shell: str) -> None:
    script = shtab.complete(parser.tree(), shell)
    assert all(verb in script for verb in (*parser.VERBS, *parser.ALIASES))


def test_a_quick_verb_imports_nothing_that_it_does_not_need() -> None:
    then = "import json; print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    code = IN_A_TERMINAL.format(argv=["--socket", "/nowhere/h2qd.sock", "ps"], then=then)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    loaded = ran.stderr.splitlines()[-1]
    assert '"h2qctl.verbs.ps"' in loaded
    for heavy in (
        "asyncio",
        "shtab",
        "subprocess",
        "numpy",
        "h2qctl.aio",
        "h2qctl.verbs.chat",
        "h2qctl.screen",
        "h2qd.runtime",
        "ssl",
    ):
        assert f'"{heavy}"' not in loaded


@pytest.mark.parametrize("name", ["../evil", "", ".hidden", "größe", "a" * 65, "a b"])
def test_a_session_that_no_daemon_would_take_is_refused_here(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parser.parse(["infer", "hi", "--session", name])
    assert left.value.code == 2
    assert "at most 64 letters" in capsys.readouterr().err
