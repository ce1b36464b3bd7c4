"""What is wrong with a configuration: one `Fault` a mistake, all of them in one `ConfigError`.

Made by `document` and `reader`, shown by the daemon before it exits. Texts are escaped for terminals here
and nowhere else, so that a fault can quote whatever the file holds.
"""

import msgspec

from h2qd.wire.names import shown

_TEXT_CHARS_MAX = 500
_SHOWN_MAX = 50


class Fault(msgspec.Struct, frozen=True):
    """One mistake. `where` is FILE:LINE, a variable or an option; `key` the dotted key, empty for the whole file."""

    where: str
    key: str
    text: str

    def __str__(self) -> str:
        parts = (self.where, self.key, self.text)
        return ": ".join(shown(part, _TEXT_CHARS_MAX) for part in parts if part)


class ConfigError(Exception):
    """The configuration cannot be used. `faults` holds every mistake found, the text the first fifty."""

    def __init__(self, faults: list[Fault]) -> None:
        lines = [str(fault) for fault in faults[:_SHOWN_MAX]]
        if len(faults) > _SHOWN_MAX:
            lines.append(f"and {len(faults) - _SHOWN_MAX} more")
        super().__init__("\n".join(lines))
        self.faults = tuple(faults)
