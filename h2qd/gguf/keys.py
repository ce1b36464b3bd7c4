"""Metadata of one architecture, read with bounds: every number that native code or the plan will use passes here.

Keys are given without the architecture's prefix. It knows no key by name; `facts` and `layers` do. Invariant: what it
returns is of the asked type and range, or a `GgufError` names the key and the value.
"""

import re

from h2qd.gguf.errors import GgufError
from h2qd.gguf.header import Header, Skipped, Value
from h2qd.wire.names import shown

_ARCHITECTURE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class Keys:
    """The metadata of `header` under its architecture's prefix."""

    def __init__(self, header: Header) -> None:
        architecture = header.values.get("general.architecture")
        if not isinstance(architecture, str) or not _ARCHITECTURE.fullmatch(architecture):
            raise GgufError(f"cannot use general.architecture = {_told(architecture)}: it names no architecture")
        self.architecture = architecture
        self._values = header.values

    def value(self, key: str) -> Value | None:
        """The value as it is in the file; None when it is not there."""
        return self._values.get(f"{self.architecture}.{key}")

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """The whole number under `key`, from `low` to `high`; `default` where the file has none, unless None."""
        value = self.value(key)
        if value is None:
            if default is None:
                raise GgufError(f"cannot find {self.architecture}.{key}: the model needs it")
            return default
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.fault(key, "it must be a whole number")
        if not low <= value <= high:
            raise self.fault(key, f"it must be between {low} and {high}")
        return value

    def each_layer(self, key: str, layers: int, high: int, default: list[int]) -> list[int]:
        """A number from 0 to `high` for each layer, from one number or a list; `default` where the file has none."""
        value = self.value(key)
        if value is None:
            return default
        if not isinstance(value, tuple):
            return [self.integer(key, 0, high)] * layers
        if len(value) != layers:
            raise self.fault(key, f"it must have an entry for each of {layers} layers")
        numbers = [int(number) for number in value if isinstance(number, int) and 0 <= number <= high]
        if len(numbers) != layers:
            raise self.fault(key, f"its entries must be whole numbers between 0 and {high}")
        return numbers

    def fault(self, key: str, why: str) -> GgufError:
        """What is wrong with `key`."""
        return GgufError(f"cannot use {self.architecture}.{key} = {_told(self.value(key))}: {why}")


def _told(value: Value | None) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Skipped):
        return f"{value.length} x {value.kind}"
    return shown(str(value), 80)
