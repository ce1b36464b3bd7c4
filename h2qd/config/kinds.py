"""What a key may hold: a kind turns the text of one value into a checked value, and back into text.

Kinds work on text, never on YAML types: `0660` is octal for a mode and quotes around a value change nothing,
so files, variables and options follow the same rules. `parse` raises `ValueError` with words that complete
"cannot use VALUE: ...". Only `UserList` looks outside: user names are resolved to uids here.
"""

import os
import pwd
import re
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

import msgspec

from h2qd.config import units
from h2qd.wire.limits import NAME_CHARS_MAX, PATH_CHARS_MAX
from h2qd.wire.messages import Scalar
from h2qd.wire.names import name_fault

ANYBODY = "*"
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_URL = re.compile(r"https?://(?:[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~/-]*)?")
_URL_CHARS_MAX = 1024
_UID_MAX = 2**32 - 2  # the all-ones uid means "unchanged" to the kernel


class Kind(Protocol):
    """A kind of value. `words` names it in the documentation."""

    @property
    def words(self) -> str:
        """The kind in words, with its range."""

    def parse(self, text: str) -> Any:
        """The value that `text` stands for; `ValueError` when it stands for none."""

    def show(self, value: Any) -> Scalar | list[str]:
        """`value` as a file may say it."""


class Whole(msgspec.Struct, frozen=True):
    """A whole number from `low` to `high`."""

    low: int
    high: int

    @property
    def words(self) -> str:
        """The kind in words."""
        return f"whole number, {self.low} to {self.high}"

    def parse(self, text: str) -> int:
        """The number; digits with an optional minus, and nothing else that `int` would take."""
        digits = text.removeprefix("-")
        number = int(text) if digits.isascii() and digits.isdigit() and len(digits) <= 18 else None
        if number is None or not self.low <= number <= self.high:
            raise ValueError(f"it must be a whole number from {self.low} to {self.high}")
        return number

    def show(self, value: int) -> Scalar:
        """The number itself."""
        return value


class Duration(msgspec.Struct, frozen=True):
    """A duration from `low_s` to `high_s` seconds."""

    low_s: float
    high_s: float

    @property
    def words(self) -> str:
        """The kind in words."""
        return f"duration, {units.show_duration(self.low_s)} to {units.show_duration(self.high_s)}"

    def parse(self, text: str) -> float:
        """Seconds."""
        seconds = units.parse_duration(text)
        if not self.low_s <= seconds <= self.high_s:
            low, high = units.show_duration(self.low_s), units.show_duration(self.high_s)
            raise ValueError(f"it must be a duration from {low} to {high}")
        return seconds

    def show(self, value: float) -> Scalar:
        """The duration with its unit."""
        return units.show_duration(value)


class Size(msgspec.Struct, frozen=True):
    """A size of at most `high_bytes`."""

    high_bytes: int

    @property
    def words(self) -> str:
        """The kind in words."""
        return f"size, at most {units.show_size(self.high_bytes)}"

    def parse(self, text: str) -> int:
        """Bytes."""
        size = units.parse_size(text)
        if size > self.high_bytes:
            raise ValueError(f"it must be at most {units.show_size(self.high_bytes)}")
        return size

    def show(self, value: int) -> Scalar:
        """The size with its unit."""
        return units.show_size(value)


class Share(msgspec.Struct, frozen=True):
    """A size of at least `low_bytes`, or a percentage."""

    low_bytes: int

    @property
    def words(self) -> str:
        """The kind in words."""
        return f"size of at least {units.show_size(self.low_bytes)}, or 1% to 100%"

    def parse(self, text: str) -> units.Amount:
        """The amount."""
        amount = units.parse_amount(text)
        if amount.size_bytes is not None and amount.size_bytes < self.low_bytes:
            raise ValueError(f"it must be at least {units.show_size(self.low_bytes)}")
        return amount

    def show(self, value: units.Amount) -> Scalar:
        """The size with its unit, or the percentage."""
        return units.show_amount(value)


class Percent(msgspec.Struct, frozen=True):
    """A percentage from `low` to `high`; its value is the share, 0 to 1."""

    low: int
    high: int

    @property
    def words(self) -> str:
        """The kind in words."""
        return f"{self.low}% to {self.high}%"

    def parse(self, text: str) -> float:
        """The share."""
        percent = units.parse_amount(text).percent if text.endswith("%") else None
        if percent is None or not self.low <= percent <= self.high:
            raise ValueError(f"it must be a percentage from {self.words}")
        return percent / 100

    def show(self, value: float) -> Scalar:
        """The percentage."""
        return f"{round(value * 100)}%"


class Mode(msgspec.Struct, frozen=True):
    """Permission bits."""

    @property
    def words(self) -> str:
        """The kind in words."""
        return "octal permission bits, 0000 to 0777"

    def parse(self, text: str) -> int:
        """The bits."""
        return units.parse_mode(text)

    def show(self, value: int) -> Scalar:
        """Four octal digits."""
        return units.show_mode(value)


class Flag(msgspec.Struct, frozen=True):
    """True or false, and not YAML's yes, no, on and off, which turn the country code NO into a lie."""

    @property
    def words(self) -> str:
        """The kind in words."""
        return "true or false"

    def parse(self, text: str) -> bool:
        """The truth value."""
        if text not in ("true", "false"):
            raise ValueError("it must be true or false")
        return text == "true"

    def show(self, value: bool) -> Scalar:
        """The truth value itself."""
        return value


class Choice(msgspec.Struct, frozen=True):
    """One of a few words."""

    options: tuple[str, ...]

    @property
    def words(self) -> str:
        """The kind in words."""
        return " or ".join(self.options)

    def parse(self, text: str) -> str:
        """The word."""
        if text not in self.options:
            raise ValueError(f"it must be {self.words}")
        return text

    def show(self, value: str) -> Scalar:
        """The word itself."""
        return value


class FilePath(msgspec.Struct, frozen=True):
    """A path of at most `bytes_max` bytes, absolute once the reader has put its folder before it."""

    bytes_max: int = PATH_CHARS_MAX

    @property
    def words(self) -> str:
        """The kind in words."""
        return f"path, at most {self.bytes_max} bytes"

    def parse(self, text: str) -> str:
        """The path."""
        if not text:
            raise ValueError("it is empty")
        try:
            size = len(os.fsencode(text))
        except UnicodeEncodeError:
            raise ValueError("it is no text that a file system could hold") from None
        if "\0" in text:
            raise ValueError("it holds a NUL character")
        if size > self.bytes_max:
            raise ValueError(f"the path has {size} bytes, at most {self.bytes_max} are possible")
        return text

    def show(self, value: str) -> Scalar:
        """The path itself."""
        return value


class Word(msgspec.Struct, frozen=True):
    """The name of something outside: an environment variable, a credential."""

    @property
    def words(self) -> str:
        """The kind in words."""
        return "name of letters, digits, _ . and -"

    def parse(self, text: str) -> str:
        """The name."""
        if not _WORD.fullmatch(text):
            raise ValueError("it must be a name of at most 64 letters, digits, _ . and -")
        return text

    def show(self, value: str) -> Scalar:
        """The name itself."""
        return value


class Url(msgspec.Struct, frozen=True):
    """Where a server is: http or https, a host, perhaps a port and a path, and no more."""

    @property
    def words(self) -> str:
        """The kind in words."""
        return "http or https URL without user, query and fragment"

    def parse(self, text: str) -> str:
        """The URL, without a slash at its end."""
        if len(text) > _URL_CHARS_MAX or not _URL.fullmatch(text):
            raise ValueError(f"it must be a {self.words}")
        try:
            port = urlsplit(text).port
        except ValueError:
            port = 0
        if port == 0:
            raise ValueError("its port must be from 1 to 65535")
        return text.rstrip("/")

    def show(self, value: str) -> Scalar:
        """The URL itself: it holds no secret."""
        return value


class TextList(msgspec.Struct, frozen=True):
    """A list of names as others write them."""

    @property
    def words(self) -> str:
        """The kind in words."""
        return "list of names"

    @property
    def item_words(self) -> str:
        """One item in words."""
        return "name"

    def parse(self, text: str) -> str:
        """The name."""
        if not text or len(text) > NAME_CHARS_MAX or not text.isprintable():
            raise ValueError(f"it must be printable, of 1 to {NAME_CHARS_MAX} characters")
        return text

    def gather(self, items: dict[str, Any]) -> tuple[str, ...]:
        """The names, in their order."""
        return tuple(items)

    def show(self, value: tuple[str, ...]) -> list[str]:
        """The names as they were given."""
        return list(value)


class NameMap(msgspec.Struct, frozen=True):
    """A map of names of our own to names as others write them. `parse` takes one of the latter."""

    @property
    def words(self) -> str:
        """The kind in words."""
        return "map of names to names"

    def parse(self, text: str) -> str:
        """The name."""
        return TextList().parse(text)

    def show(self, value: tuple[tuple[str, str], ...]) -> list[str]:
        """The pairs, as OURS=THEIRS."""
        return [f"{ours}={theirs}" for ours, theirs in value]


class Users(msgspec.Struct, frozen=True):
    """Some users: what the file `named`, and the uids that was at the time it was read."""

    named: tuple[str, ...] = ()
    uids: frozenset[int] = frozenset()

    def allows(self, uid: int) -> bool:
        """Whether the user `uid` is one of them."""
        return ANYBODY in self.named or uid in self.uids


@runtime_checkable
class ListKind(Kind, Protocol):
    """A kind of list: `parse` takes one item."""

    @property
    def item_words(self) -> str:
        """One item in words."""

    def gather(self, items: dict[str, Any]) -> Any:
        """The value, of the texts of all items and what `parse` made of them."""


class NameList(msgspec.Struct, frozen=True):
    """A list of names of models."""

    @property
    def words(self) -> str:
        """The kind in words."""
        return "list of model names"

    @property
    def item_words(self) -> str:
        """One item in words."""
        return "model name"

    def parse(self, text: str) -> str:
        """The name."""
        if fault := name_fault(text):
            raise ValueError(fault)
        return text

    def gather(self, items: dict[str, Any]) -> tuple[str, ...]:
        """The names, in their order."""
        return tuple(items)

    def show(self, value: tuple[str, ...]) -> list[str]:
        """The names as they were named."""
        return list(value)


class AdapterList(msgspec.Struct, frozen=True):
    """A list of adapters of a model, each as name=path."""

    @property
    def words(self) -> str:
        """The kind in words."""
        return "list of name=path"

    @property
    def item_words(self) -> str:
        """One item in words."""
        return "name=path"

    def located(self, text: str, folder: str) -> str:
        """An item whose relative path starts at `folder`."""
        name, equals, path = text.partition("=")
        return f"{name}={Path(folder).absolute() / path}" if equals and path else text

    def parse(self, text: str) -> tuple[str, str]:
        """The name and the path."""
        name, equals, path = text.partition("=")
        if not equals:
            raise ValueError("it must be name=path")
        if not _WORD.fullmatch(name):
            raise ValueError("its name must be of at most 64 letters, digits, _ . and -")
        return name, FilePath().parse(path)

    def gather(self, items: dict[str, Any]) -> tuple[tuple[str, str], ...]:
        """The names and paths, in their order."""
        return tuple(items.values())

    def show(self, value: tuple[tuple[str, str], ...]) -> list[str]:
        """The items as they were given, with whole paths."""
        return [f"{name}={path}" for name, path in value]


class UserList(msgspec.Struct, frozen=True):
    """A list of user names and uids. `parse` takes one item: its uid, or None for anybody."""

    @property
    def words(self) -> str:
        """The kind in words."""
        return "list of user names or uids, or *"

    @property
    def item_words(self) -> str:
        """One item in words."""
        return "user name or uid"

    def gather(self, items: dict[str, Any]) -> Users:
        """The users."""
        return Users(tuple(items), frozenset(uid for uid in items.values() if uid is not None))

    def parse(self, text: str) -> int | None:
        """The uid of one item."""
        if text == ANYBODY:
            return None
        if text.isascii() and text.isdigit():
            if len(text) > 10 or int(text) > _UID_MAX:
                raise ValueError(f"a uid is from 0 to {_UID_MAX}")
            return int(text)
        try:
            return pwd.getpwnam(text).pw_uid
        except (KeyError, ValueError):  # ValueError: NUL or unencodable, so no name of anybody
            raise ValueError("no user of this name exists") from None

    def show(self, value: Users) -> list[str]:
        """The items as they were named."""
        return list(value.named)
