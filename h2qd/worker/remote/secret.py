"""The key of a server: read from where it is kept, put into one header, and kept out of every text.

It comes from a variable of this process's environment or a file in $CREDENTIALS_DIRECTORY (systemd's LoadCredential),
never from a message. Called when an engine is made. Invariant: no repr, no exception and no text scrubbed here holds
the key; that includes what a server echoes.
"""

import ctypes
import os
import re
from pathlib import Path

from h2qd.wire.workers import RemoteTarget
from h2qd.worker.engine import EngineError

_PR_SET_DUMPABLE = 4  # linux/prctl.h
_KEY_BYTES_MAX = 8192
_ECHO_CHARS_MIN = 8
"""A shorter key is a word that other texts hold by chance."""
_CREDENTIAL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
_VISIBLE = re.compile(r"[!-~]+")
"""Others would not fit a header, and the complaint would quote them."""


class Secret:
    """A key, or none."""

    __slots__ = ("_key",)

    def __init__(self, key: str = "") -> None:
        if key and not _VISIBLE.fullmatch(key):
            raise EngineError("load_failed", "cannot use the server's key: it holds blanks or control characters")
        self._key = key

    def __repr__(self) -> str:
        return "Secret(…)" if self._key else "Secret()"

    def header(self) -> list[tuple[bytes, bytes]]:
        """The header that carries it, where there is one."""
        return [(b"Authorization", f"Bearer {self._key}".encode("ascii"))] if self._key else []

    def scrubbed(self, text: str) -> str:
        """`text` without the key, also where it is only begun or ended: servers quote keys, and shorten quotes."""
        key = self._key
        if len(key) < _ECHO_CHARS_MIN:
            return text.replace(key, "…") if key else text
        text = text.replace(key, "…")
        for part in (key[:_ECHO_CHARS_MIN], key[-_ECHO_CHARS_MIN:]):
            text = re.sub(rf"[!-~]*{re.escape(part)}[!-~]*", "…", text)
        return text


def read_secret(target: RemoteTarget) -> Secret:
    """The key that `target` names. Raises `EngineError` (load_failed): it names one that is not there."""
    if target.key_env:
        key = os.environ.get(target.key_env, "").strip()
        if not key:
            raise EngineError("load_failed", "cannot speak to the server: the variable that holds its key is not set")
        return Secret(key)
    if target.key_credential:
        return Secret(_credential(target.key_credential))
    return Secret()


def hide_memory() -> None:
    """Other processes of this user may not read this one's memory or environment from now on (prctl(2)).

    So that user cannot weigh it either: what it holds is read as root, or from its cgroup.
    """
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0)


def _credential(name: str) -> str:
    folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
    if not folder or not _CREDENTIAL.fullmatch(name) or ".." in name:
        raise EngineError("load_failed", "cannot read the server's key: there is no credential of this name")
    try:
        with Path(folder, name).open("rb") as file:
            data = file.read(_KEY_BYTES_MAX + 1)
        key = data.decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise EngineError("load_failed", "cannot read the server's key from its credential") from None
    if not key or len(data) > _KEY_BYTES_MAX:
        raise EngineError("load_failed", "cannot use the server's key: its credential is empty or too large")
    return key
