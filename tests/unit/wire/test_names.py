"""Names of models and text that is safe to show."""

import pytest

from h2qd.wire.limits import NAME_CHARS_MAX
from h2qd.wire.names import name_fault, shown, suggest_name, tagged


@pytest.mark.parametrize("name", ["a", "0", "gemma3:270m-q4_k_m", "lib/qwen3", "a/b/c", "a.b", "x" * NAME_CHARS_MAX])
def test_names(name: str) -> None:
    assert name_fault(name) is None


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty"),
        ("x" * (NAME_CHARS_MAX + 1), "longer"),
        ("Gemma", "only"),
        ("-a", "begins"),
        (".a", "begins"),
        ("/a", "single /"),
        ("a/", "single /"),
        ("a//b", "single /"),
        ("a/.b", "begins"),
        ("a..b", "'..'"),
        ("../a", "only"),
        ("a b", "only"),
        ("a\n", "only"),
        ("a\0", "only"),
        ("a\x1b[31m", "only"),
        ("\u0430", "only"),  # a Cyrillic letter that looks like a Latin one
        ("a\u202eb", "only"),
    ],
)
def test_what_is_no_name_and_why(name: str, why: str) -> None:
    fault = name_fault(name)
    assert fault is not None
    assert why in fault


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("Gemma-3-270M.Q4_K_M", "gemma-3-270m.q4_k_m"),
        ("Größe 7B", "gro-e-7b"),
        ("..hidden..", "hidden"),
        ("a...b", "a.b"),
        ("模型", "model"),
        ("", "model"),
        ("x" * 127 + "--y", "x" * 127),
    ],
)
def test_a_name_is_suggested_from_a_file(stem: str, name: str) -> None:
    assert suggest_name(stem) == name
    assert name_fault(name) is None


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("plain größe 🙂", "plain größe 🙂"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\u202eb", "a\\u202eb"),
        ("line\nline\r\t\0", "line\\nline\\r\\t\\x00"),
        ("\udc80", "\\udc80"),
        ("\x9b31m", "\\x9b31m"),
    ],
)
def test_text_is_shown_without_what_steers_a_terminal(text: str, safe: str) -> None:
    assert shown(text) == safe


def test_shown_text_is_cut() -> None:
    assert shown("x" * 200) == "x" * 200
    assert shown("x" * 201) == "x" * 199 + "…"
    assert shown("abcdef", chars_max=3) == "ab…"


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("llama3.2", "llama3.2:latest"),
        ("Llama3.2:3B", "llama3.2:3b"),
        ("hf.co/Org/A-GGUF", "hf.co/org/a-gguf:latest"),
        ("registry:5000/a", "registry:5000/a:latest"),
    ],
)
def test_a_servers_name_has_the_tag_that_is_meant(name: str, full: str) -> None:
    assert tagged(name) == full
    assert tagged(full) == full
