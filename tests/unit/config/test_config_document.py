"""YAML as a bounded tree: what is taken, what is refused, and that nothing gets through."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from h2qd.config import document
from h2qd.config.document import Broken, Mapping, Scalar, Sequence


def texts(data: str | bytes) -> list[str]:
    _, faults = document.parse(data.encode() if isinstance(data, str) else data, "f")
    return [str(fault) for fault in faults]


def test_a_tree_of_texts_with_lines() -> None:
    top, faults = document.parse(b"a:\n  mode: 0660\nb: [x, 'null']\nc:\n", "f")
    assert not faults
    assert top.lines == {"a": 1, "b": 3, "c": 4}
    below = top.entries["a"]
    assert isinstance(below, Mapping)
    assert below.entries == {"mode": Scalar("0660", 2)}
    assert top.entries["b"] == Sequence([Scalar("x", 3), Scalar("null", 3)], 3)
    assert top.entries["c"] == Scalar("", 4, empty=True)


@pytest.mark.parametrize("data", ["", "# nothing\n", "---\n", "~", "null\n"])
def test_nothing_is_an_empty_map(data: str) -> None:
    top, faults = document.parse(data.encode(), "f")
    assert (top.entries, faults) == ({}, [])


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ("a: 1\na: 2", "f:2: a: cannot use a key twice: it is on line 1 already"),
        ("s:\n  a: 1\n  'a': 2", "f:3: s.a: cannot use a key twice: it is on line 2 already"),
        ("a: &x 1", "f:1: a: cannot use the anchor &x"),
        ("a: *x", "f:1: a: cannot use the alias *x"),
        ("a: !!python/object:os.system x", "f:1: a: cannot use the tag tag:yaml.org,2002:python/object:os.system"),
        ("? [a]\n: 1", "f:1: cannot use a list or map as a key"),
        ("- a", "f:1: cannot use this: the file must be a map"),
        ("just words", "f:1: cannot use this: the file must be a map"),
        ("a: 1\n---\nb: 2", "f:2: cannot read a second document"),
        ("a: [1", "f:1: cannot read this as YAML"),
        ("a: 1\n\tb: 2", "f:2: cannot read this as YAML"),
        ("a: 1\nb: \x00", "f:2: cannot read a control character"),
        (b"a: 1\nb: \xff", "f:2: cannot read this line: it is not UTF-8"),
        ('a: "\\UFFFFFFFF"', "f:1: cannot read this as YAML: a number in an escape"),
        ("%YAML 1." + "9" * 5000 + "\n---\na: 1", "f:1: cannot read this as YAML"),
        ("a: " + "[" * 9 + "]" * 9, "f:1: a[0][0][0][0][0][0][0]: cannot use values nested more than 8 deep"),
        ("a: " + "x" * 65536, "f: cannot read a configuration of more than 65536 bytes"),
    ],
)
def test_what_is_refused(data: str | bytes, fault: str) -> None:
    found = texts(data)
    assert any(text.startswith(fault) for text in found), found


def test_a_refused_value_leaves_a_broken_node_and_the_rest() -> None:
    top, faults = document.parse(b"a: *x\nb: 1", "f")
    assert top.entries == {"a": Broken(1), "b": Scalar("1", 2)}
    assert len(faults) == 1


@pytest.mark.parametrize("data", [b"[" * 65536, b"{a: " * 16384, b"- " * 32768, b"? " * 32768, b"&a " * 21000])
def test_deep_documents_are_given_up_at_once(data: bytes) -> None:
    start = time.process_time()
    _, faults = document.parse(data, "f")
    assert faults
    # Reading 64 KiB of open brackets to the end takes minutes.
    assert time.process_time() - start < 2


@given(
    st.one_of(st.binary(max_size=200), st.text("abc:-[]{}&*!?|>'\"%@\\ \n\t#,~0xUu", max_size=100).map(str.encode))
)
def test_no_bytes_escape(data: bytes) -> None:
    top, faults = document.parse(data, "f")
    assert isinstance(top, Mapping)
    assert all("\n" not in str(fault) and str(fault).isprintable() for fault in faults)
