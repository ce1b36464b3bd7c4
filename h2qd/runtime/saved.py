"""Saved sessions as clients see them: listed and removed, off the loop.

Workers write and read the files; here nothing but their records is looked at. A session is named by its user and a
name; models are told by the hash in the file, so a file whose model is no longer registered shows that hash. Called
by `commands`.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeVar

from h2qd.core.records import Fault
from h2qd.runtime.orders import session_key
from h2qd.runtime.refusal import Refusal
from h2qd.sessions.folder import Folder, Row
from h2qd.store.registry import Manifest
from h2qd.wire import messages as m

_HASH_SHOWN_CHARS = 12

_Found = TypeVar("_Found")


class SavedSessions:
    """The sessions in `folder`, for which `manifests` name the models. `forget(key, model)` reaches the workers."""

    def __init__(
        self,
        folder: Path,
        quota_bytes: int,
        manifests: dict[str, Manifest],
        disk: Executor,
        forget: Callable[[str, str | None], None],
    ) -> None:
        self._folder = folder
        self._quota_bytes = quota_bytes
        self._manifests = manifests
        self._disk = disk
        self._forget = forget

    async def list(self, uid: int | None) -> m.Sessions:
        """A user's sessions, or everybody's. Raises `Refusal` (state_not_written) when the folder cannot be read."""
        rows = await self._on_disk(lambda: Folder(self._folder).rows())
        names = {manifest.sha256: name for name, manifest in sorted(self._manifests.items(), reverse=True)}
        mine = [_row(row, names) for row in rows if uid in (None, row.uid)]
        return m.Sessions(mine, sum(row.size_bytes for row in mine), self._quota_bytes)

    async def remove(self, uid: int, session: str, model: str | None) -> m.SessionRemoved:
        """Forget a user's session, of one model or of all, on disk and in the KV caches. Raises `Refusal`."""
        key = session_key(uid, session)
        sha256 = None if model is None else self._manifests[model].sha256
        files, freed_bytes = await self._on_disk(lambda: Folder(self._folder).remove(key, sha256))
        self._forget(key, model)  # after it was counted: workers remove what they wrote themselves
        return m.SessionRemoved(session, files, freed_bytes)

    async def _on_disk(self, work: Callable[[], _Found]) -> _Found:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._disk, work)
        except OSError as error:
            what = f"cannot use the folder of saved sessions: {error.strerror}"
            raise Refusal(Fault("state_not_written", what)) from error


def _row(row: Row, names: dict[str, str]) -> m.SessionRow:
    return m.SessionRow(
        session=row.name,
        model=names.get(row.sha256, row.sha256[:_HASH_SHOWN_CHARS]),
        tokens=row.tokens,
        size_bytes=row.size_bytes,
        used_at_ms=round(row.used_at * 1000),
        uid=row.uid,
    )
