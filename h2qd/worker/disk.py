"""Where a worker keeps the sessions of its model on disk, and what a session is called there.

Called by the engines, which know what is in a file; `h2qd.sessions` knows the files. A folder that cannot be used is
none, and says so in the log: sessions are worth a prefill, not a load.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from h2qd.sessions.folder import Folder
from h2qd.sessions.record import RecordError, check_sha256, split_key
from h2qd.wire.workers import LoadModel, SessionsSaved
from h2qd.worker import journal
from h2qd.worker.engine import EngineError


class Disk(NamedTuple):
    """Where sessions are kept, how much they may take there, and of which model they are."""

    folder: Folder
    quota_bytes: int
    sha256: str


def open_disk(order: LoadModel) -> Disk | None:
    """The folder that `order` names; None: nothing is kept on disk, or it cannot be."""
    if not order.sessions or order.sessions_bytes <= 0:
        return None
    try:
        check_sha256(order.sha256)
        return Disk(Folder(Path(order.sessions)), order.sessions_bytes, order.sha256)
    except (OSError, RecordError) as error:
        journal.record("sessions.folder_unusable", error)
        return None


def told(done: Sequence[int | str], start_s: float) -> SessionsSaved:
    """What came of saving since `start_s`: of each session the size of its file, or why there is none."""
    sizes = [one for one in done if isinstance(one, int)]
    reasons = [one for one in done if isinstance(one, str)]
    took_ms = (time.perf_counter() - start_s) * 1000
    return SessionsSaved(len(sizes), len(reasons), sum(sizes), took_ms, reasons[0] if reasons else "")


def remove(disk: Disk, key: str) -> None:
    """Keep nothing of this session there."""
    try:
        disk.folder.remove(key, disk.sha256)
    except (OSError, RecordError) as error:
        journal.record("sessions.not_removed", error)


def check_key(key: str) -> None:
    """Raises `EngineError` (invalid_request) at what is no key of a session."""
    try:
        split_key(key)
    except RecordError:
        raise EngineError("invalid_request", "cannot use the session: it has no key") from None
