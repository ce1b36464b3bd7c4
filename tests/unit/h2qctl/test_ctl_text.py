import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from h2qctl import progress, tables, text
from h2qd.wire import messages as m


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [
        (None, "<none>"), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (253 << 20, "253 MiB"),
        (1 << 30, "1.0 GiB"), (int(6.1 * (1 << 30)), "6.1 GiB"), ((1 << 30) - 1, "1.0 GiB"), (5 << 50, "5120 TiB"),
    ],
)  # fmt: skip
def test_sizes(size_bytes: int | None, shown: str) -> None:
    assert text.size(size_bytes) == shown


@pytest.mark.parametrize(("size_bytes", "shown"), [(12 << 20, "+12.0 MiB"), (-(200 << 20), "-200 MiB"), (0, "+0 B")])
def test_differences(size_bytes: int, shown: str) -> None:
    assert text.difference(size_bytes) == shown


@pytest.mark.parametrize(
    ("ms", "shown"),
    [
        (None, "<none>"), (0, "0ms"), (450.4, "450ms"), (999.6, "1.0s"), (3_210, "3.2s"), (59_960, "1m00s"),
        (185_000, "3m05s"), (7_800_000, "2h10m"), (442_800_000, "5d03h"),
    ],
)  # fmt: skip
def test_durations(ms: float | None, shown: str) -> None:
    assert text.duration(ms) == shown


@pytest.mark.parametrize(
    ("number", "shown"), [(0, "<none>"), (999, "999"), (268_098_176, "268M"), (7_600_000_000, "7.6B")]
)
def test_counts(number: int, shown: str) -> None:
    assert text.count(number) == shown


def test_moments_are_rfc_3339() -> None:
    assert re.fullmatch(r"2023-11-1[45]T\d\d:\d\d:20[+-]\d\d:\d\d", text.moment(1_700_000_000_000))


@given(st.text())
def test_nothing_in_an_answer_moves_the_cursor(said: str) -> None:
    shown = text.answer(said)
    assert not [c for c in shown if c not in "\n\t" and (ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e\u2066")]
    assert text.safe(said).isprintable()


def test_an_answer_keeps_its_lines_and_its_letters() -> None:
    said = "naïve\n\t日本語 👩‍👩‍👧 العربية"
    assert text.answer(said) == said
    assert text.answer("\x1b[31mred\x9b\r") == "\\x1b[31mred\\x9b\\r"


def test_a_table_is_aligned_and_has_no_blanks_at_its_ends() -> None:
    assert tables.table(["NAME", "SIZE"], [["a", None], ["longer", "1 B"]], None) == [
        "NAME    SIZE",
        "a       <none>",
        "longer  1 B",
    ]


def test_a_pipe_gets_everything_and_a_terminal_what_fits() -> None:
    row = ["n" * 120, "ready", "p" * 70]
    (_, whole) = tables.table(["NAME", "STATE", "PATH"], [row], None)
    assert whole == "  ".join(row)
    lines = tables.table(["NAME", "STATE", "PATH"], [row], 80)
    assert max(map(len, lines)) == 80
    assert "ready" in lines[1]
    assert lines[1].count("…") == 2


@given(st.lists(st.tuples(st.text(max_size=90), st.text(max_size=90)), max_size=5))
def test_a_table_has_a_line_a_row_whatever_is_in_it(rows: list[tuple[str, str]]) -> None:
    lines = tables.table(["A", "B"], rows, 60)
    assert len(lines) == len(rows) + 1
    assert all(len(line) <= 60 and line.isprintable() for line in lines)


def test_progress_in_words() -> None:
    report = m.Progress("loading", model="gemma3", fraction=0.5)
    assert progress.describe(report, bar=True) == "loading gemma3 [##########..........]  50%"
    assert progress.describe(report, bar=False) == "loading gemma3"
    assert progress.describe(m.Progress("queued", position=2), bar=True) == "queued (place 2 in the queue)"
    assert "100%" in progress.describe(m.Progress("loading", fraction=7.0), bar=True)
