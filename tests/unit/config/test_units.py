"""Sizes, durations and modes: what people write, what they must not, and the way back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from h2qd.config import units
from h2qd.config.units import Amount


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1B", 1),
        ("512MB", 512 * 10**6),
        ("2GiB", 2 * 2**30),
        ("2 gib", 2 * 2**30),
        ("1.5GiB", 3 * 2**29),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "2G", "-1", "GiB", "1e3", "0x10", "1.5", "٣", "9" * 16, "2GiB\n", "nan"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"^it "):
        units.parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("5s", 5.0), ("2m", 120.0), ("1h", 3600.0), ("1.5s", 1.5)]
)
def test_durations(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "5 sec", "-1s", "1d", "0.1ms", "inf", "٣s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"^it "):
        units.parse_duration(text)


@pytest.mark.parametrize(
    ("text", "mode"), [("0660", 0o660), ("660", 0o660), ("0o660", 0o660), ("0", 0), ("777", 0o777)]
)
def test_modes_are_octal_however_they_are_written(text: str, mode: int) -> None:
    assert units.parse_mode(text) == mode


@pytest.mark.parametrize("text", ["", "0888", "1777", "-660", "0x1f", "rw-rw----", "432x"])
def test_what_is_no_mode(text: str) -> None:
    with pytest.raises(ValueError, match="octal"):
        units.parse_mode(text)


def test_amounts_of_a_total() -> None:
    assert units.parse_amount("60%").of(1000) == 600
    assert units.parse_amount("100%").of(2**63) == 2**63
    assert units.parse_amount("2KiB").of(10_000) == 2048
    assert units.parse_amount("2KiB").of(1000) == 1000, "never more than there is"


@pytest.mark.parametrize("text", ["0%", "101%", "-5%", "1.5%", "%"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(ValueError, match=r"1% to 100%|share such as"):
        units.parse_amount(text)


@given(st.integers(0, 2**49))
def test_sizes_survive_being_shown(size: int) -> None:
    assert units.parse_size(units.show_size(size)) == size


@given(st.integers(0, 10**9))
def test_durations_survive_being_shown(milliseconds: int) -> None:
    assert units.parse_duration(units.show_duration(milliseconds / 1000)) == milliseconds / 1000


@given(st.integers(0, 0o777))
def test_modes_survive_being_shown(mode: int) -> None:
    assert units.parse_mode(units.show_mode(mode)) == mode


@given(st.one_of(st.builds(Amount, percent=st.integers(1, 100)), st.builds(Amount, size_bytes=st.integers(0, 2**49))))
def test_amounts_survive_being_shown(amount: Amount) -> None:
    assert units.parse_amount(units.show_amount(amount)) == amount
