"""The table of keys for people: Markdown, made from the schema, so that it cannot drift.

`python -m h2qd.config` prints it; configs/README.md is that output, and a test compares the two.
"""

from typing import Any

import msgspec

from h2qd.config.kinds import Kind
from h2qd.config.reader import DEFAULT_FILE, FILE_VARIABLE, OPTIONS, VARIABLES
from h2qd.config.schema import KEYS, MODEL_KEYS, REMOTE_KEYS, Config, Key, Model, Remote, Section, Socket, value_at

_HEAD = f"""# Configuration

h2qd reads one YAML file: the one that `--config` names, else `{FILE_VARIABLE}`, else `{DEFAULT_FILE}` if it
exists; without a file every key has its default. `edge.yaml` beside this page is such a file, with every key.
Environment variables win over the file, options over both. All mistakes are reported at once, each with its
line; `h2qctl config` prints what is in force and where each value comes from.

A dot is a level of nesting. Durations need a unit (`500ms`, `5s`, `2m`, `1h`); sizes are bytes or have one
(`512MB`, `2GiB`). Relative paths start at the file's folder, those in variables and options at the current one.
Aliases, anchors, tags and duplicate keys are refused, and so are files of more than 64 KiB.

This page is printed by `python -m h2qd.config`.
"""


def reference() -> str:
    """The whole page."""
    # Stands in for the defaults that are computed, which the page gives in words.
    defaults = Config(socket=Socket(path=""), state_dir="", file="", sources={})
    rows = [_row(key, spec, value_at(defaults, key)) for key, spec in KEYS.items()]
    rows += [_row(f"models.NAME.{key}", spec, _default(Model, key)) for key, spec in MODEL_KEYS.items()]
    rows += [_row(f"remotes.NAME.{key}", spec, _default(Remote, key)) for key, spec in REMOTE_KEYS.items()]
    overrides = [f"| `{name}` | `{key}` |" for name, key in (*VARIABLES.items(), *OPTIONS.items())]
    table = ["| key | value | default | meaning |", "| --- | --- | --- | --- |", *rows]
    other = ["| variable or option | key |", "| --- | --- |", *overrides]
    return "\n".join([_HEAD, "## Keys", "", *table, "", "## Variables and options", "", *other, ""])


def _default(section: type[Section], key: str) -> Any:
    return next(field.default for field in msgspec.structs.fields(section) if field.encode_name == key)


def _row(key: str, spec: Key, default: Any) -> str:
    cells = (f"`{key}`", spec.kind.words, spec.default or _shown(spec.kind, default), spec.meaning)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("*", "\\*") for cell in cells) + " |"


def _shown(kind: Kind, default: Any) -> str:
    """A default as a file may say it."""
    value = kind.show(default)
    text = str(value).lower() if isinstance(value, bool | list) else str(value)
    return f"`{text}`"
