"""The turns of named conversations, kept in files of the user's own: what `chat --session` goes on from.

The daemon keeps the KV cache under the same name; without the turns it could not be told what to go on from, and
without the cache they are only prefilled again. A file is written whole and renamed into place, is bounded, and is
read as strictly as a message. Invariant: one process at a time holds a conversation, and only it writes the file.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec

from h2qctl.errors import H2qError
from h2qd.wire.limits import MESSAGES_MAX, PROMPT_BYTES_MAX
from h2qd.wire.messages import ChatMessage, Name
from h2qd.wire.names import shown

FILE_BYTES_MAX = 2 * PROMPT_BYTES_MAX
"""All turns must go into one request; as JSON they may take twice the room."""

LISTED_MAX = 10_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A conversation: who said what, and the model that answered last."""

    h2qctl_session: Literal[1]
    model: Name | None
    messages: Annotated[list[ChatMessage], msgspec.Meta(max_length=MESSAGES_MAX)]

    @property
    def turns(self) -> int:
        """How often the user had a say."""
        return sum(message.role == "user" for message in self.messages)


class Found(NamedTuple):
    """A file as a list shows it: `kept` is None when it is damaged."""

    session: str
    kept: Kept | None
    size_bytes: int
    used_at_s: float


_decoder = msgspec.json.Decoder(Kept)


def folder() -> Path:
    """Where the files are."""
    state = os.environ.get("XDG_STATE_HOME") or ""
    base = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return base / "h2qctl" / "sessions"


def checked(session: str) -> str:
    """`session`, which is a name and no path. Raises `H2qError` (invalid_request)."""
    if _NAME.fullmatch(session):
        return session
    raise H2qError(
        "invalid_request",
        f"cannot name a session {shown(session)!r}",
        "use up to 64 of A-Z a-z 0-9 . _ - and begin with a letter or digit",
    )


@contextmanager
def held(session: str) -> Iterator[None]:
    """Keep the conversation to this process. Raises `H2qError` (in_use) when another holds it."""
    path = _file(session).with_suffix(".lock")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _unwritable(session, error) from None
    try:
        if not _locked(lock):
            message = f"cannot go on with session {session}: another h2qctl holds it"
            raise H2qError("in_use", message, "leave the other one first, or name another session")
        yield
    finally:
        os.close(lock)


def _locked(lock: int) -> bool:
    """Take the lock, unless another process has it, or has just removed it with the session."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return os.fstat(lock).st_nlink > 0


def read(session: str) -> Kept | None:
    """What is kept of a conversation; None when nothing is. Raises `H2qError` when the file is damaged."""
    path = _file(session)
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _damaged(session, path, str(error)) from None
    if len(data) > FILE_BYTES_MAX:
        raise _damaged(session, path, f"it has more than {FILE_BYTES_MAX} bytes")
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(session, path, str(error)) from None


def write(session: str, model: str | None, messages: list[ChatMessage]) -> None:
    """Keep the conversation as it is now. Raises `H2qError` (too_large, state_not_written)."""
    data = msgspec.json.encode({"h2qctl_session": 1, "model": model, "messages": messages})
    if len(data) > FILE_BYTES_MAX or len(messages) > MESSAGES_MAX:
        raise H2qError(
            "too_large",
            f"cannot keep session {session}: {len(messages)} messages of {len(data)} bytes are too many",
            "/clear, or begin another session",
        )
    path = _file(session)
    new = path.with_suffix(".new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        new.replace(path)
    except OSError as error:
        raise _unwritable(session, error) from None


def remove(session: str) -> bool:
    """Forget the turns; whether there were any. Raises `H2qError` (in_use, state_not_written)."""
    path = _file(session)
    if not path.exists():
        return False
    with held(session):
        try:
            path.unlink(missing_ok=True)
            path.with_suffix(".lock").unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(session, error) from None
    return True


def found() -> list[Found]:
    """All conversations that are kept, the latest first."""
    every: list[Found] = []
    try:
        names = sorted(os.listdir(folder()))[:LISTED_MAX]  # noqa: PTH208  # names are all that is wanted
    except OSError:
        return []
    for name in names:
        session = name.removesuffix(".json")
        if session == name or not _NAME.fullmatch(session):
            continue
        try:
            about = _file(session).stat()
        except OSError:
            continue  # it went away meanwhile
        try:
            kept = read(session)
        except H2qError:
            kept = None
        every.append(Found(session, kept, about.st_size, about.st_mtime))
    return sorted(every, key=lambda one: one.used_at_s, reverse=True)


def _file(session: str) -> Path:
    return folder() / f"{checked(session)}.json"


def _damaged(session: str, path: Path, why: str) -> H2qError:
    return H2qError(
        "invalid_request",
        f"cannot go on with session {session}: {shown(str(path))} is damaged: {shown(why)}",
        f"mend the file, or forget the session: h2qctl sessions rm {session}",
    )


def _unwritable(session: str, error: OSError) -> H2qError:
    return H2qError(
        "state_not_written",
        f"cannot keep session {session}: {shown(str(error))}",
        f"make room and leave to write in {shown(str(folder()))}, or set XDG_STATE_HOME",
    )
