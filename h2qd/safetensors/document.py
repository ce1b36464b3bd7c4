"""A bounded JSON file of a model folder, and checked values out of it.

The files say more than anybody here asks for, and all of it may reach a library, so everything is bounded: the size,
the depth, the count of values, every number. Called by `folder` and `facts`. Invariant: what `read` returns can be
walked, copied and turned into text at little cost.
"""

from collections.abc import Mapping
from typing import TypeAlias

import msgspec

from h2qd.safetensors.errors import SafetensorsError
from h2qd.wire.names import shown

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

DEPTH_MAX = 16
VALUES_MAX = 100_000
NUMBER_MAX = 2**53


class Document:
    """The top-level values of the file called `name`."""

    def __init__(self, name: str, values: Mapping[str, Json]) -> None:
        self.name = name
        self.values = values

    def fault(self, key: str, reason: str) -> SafetensorsError:
        """A refusal because of the value of `key`."""
        return SafetensorsError(f"cannot use {key} of {self.name}: {reason}")

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number from `low` to `high`; `default` where there is none, or null."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.fault(key, "it must be a whole number")
        if not low <= value <= high:
            raise self.fault(key, f"it is {value}, and must be from {low} to {high}")
        return value

    def text(self, key: str, default: str = "") -> str:
        """A text; `default` where there is none, or null."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.fault(key, "it must be a text")
        return value

    def flag(self, key: str) -> bool:
        """Whether something is so; not, where nothing is said."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.fault(key, "it must be true or false")
        return bool(value)


def read(name: str, data: bytes) -> Document:
    """The object in `data`, the content of the file called `name`. Raises `SafetensorsError`."""
    values = parse(name, data)
    if not isinstance(values, dict):
        raise SafetensorsError(f"cannot use {name}: it is no JSON object")
    return Document(name, values)


def parse(name: str, data: bytes) -> Json:
    """The value in `data`. Raises `SafetensorsError`."""
    if data.count(b",") + data.count(b"[") + data.count(b"{") > VALUES_MAX:  # before anything is made of it
        raise SafetensorsError(f"cannot use {name}: it has over {VALUES_MAX} values")
    try:
        value: Json = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SafetensorsError(f"cannot read {name}: {shown(str(error), 200)}") from None
    _check(name, value)
    return value


def _check(name: str, value: Json) -> None:
    level: list[Json] = [value]
    for _ in range(DEPTH_MAX):
        below: list[Json] = []
        for one in level:
            if isinstance(one, dict):
                below += one.values()
            elif isinstance(one, list):
                below += one
            elif isinstance(one, int | float) and not abs(one) <= NUMBER_MAX:
                raise SafetensorsError(f"cannot use {name}: it holds a number beyond {NUMBER_MAX}")
        if not below:
            return
        level = below
    raise SafetensorsError(f"cannot use {name}: its values are nested deeper than {DEPTH_MAX} levels")
