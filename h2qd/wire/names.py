"""Names of models: one validator for every door they come through, and one escape for showing text.

A name is lower case ASCII, so no two names look alike, none is a path out of a folder, and none
carries a terminal escape. A server's own names are its business: here is only when two of them mean the same.
Callers: the store (on registration), configuration, h2qctl, whoever speaks to servers.
"""

import re
import unicodedata

from h2qd.wire.limits import NAME_CHARS_MAX

_NAME = re.compile(r"[a-z0-9][a-z0-9._:-]*(?:/[a-z0-9][a-z0-9._:-]*)*")


def name_fault(name: str) -> str | None:
    """Why `name` cannot name a model, or None when it can."""
    if not name:
        return "it is empty"
    if len(name) > NAME_CHARS_MAX:
        return f"it is longer than {NAME_CHARS_MAX} characters"
    if not _NAME.fullmatch(name):
        return "it may hold only a-z 0-9 . _ - : and single /, and begins with a letter or digit"
    if ".." in name:
        return "it holds '..'"
    return None


def suggest_name(stem: str) -> str:
    """The nearest valid name to a file's stem; 'model' when nothing of it is left."""
    text = unicodedata.normalize("NFKD", stem).lower()
    text = re.sub(r"[^a-z0-9._-]+", "-", text)
    text = re.sub(r"\.{2,}", ".", text).strip("-._")[:NAME_CHARS_MAX].strip("-._")
    return text or "model"


def tagged(name: str) -> str:
    """A model's name as an Ollama compares it: without case, and with the tag that it adds."""
    name = name.lower()
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def shown(text: str, chars_max: int = 200) -> str:
    """`text` made safe for a terminal or a log: control, bidi and unprintable characters escaped, length bounded."""
    parts = (c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[: chars_max + 1])
    escaped = "".join(parts)  # up to ten characters for one, so what is cut is the outcome
    return escaped if len(escaped) <= chars_max else escaped[: chars_max - 1] + "…"
