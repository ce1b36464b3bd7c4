"""Times as they are typed."""

import argparse

import pytest

from h2qctl.times import seconds


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("90", 90), ("1.5", 1.5), (".5", 0.5), ("500ms", 0.5), ("90s", 90), ("2m", 120), ("1h", 3600)],
)
def test_a_time_is_seconds_or_has_a_unit(typed: str, meant: float) -> None:
    assert seconds(typed) == pytest.approx(meant)


@pytest.mark.parametrize("typed", ["", "0", "-1", "0s", "1d", "1 s", "1e3", "nan", "inf", "٣s", "9" * 20, "1s\n"])
def test_what_is_no_time_is_refused_with_what_would_be_one(typed: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="give seconds, or 500ms, 90s, 2m, 1h"):
        seconds(typed)
