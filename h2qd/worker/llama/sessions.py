"""Which sequence holds which session, whether it is newer than the disk, and the way there and back.

Called by `seating` and `batch`, and by `engine` when the model goes. A session is a conversation that its user named:
it goes on from cells that its own history computed, wherever they were since. Invariant: a session is held by one
sequence at most, which no request works on; native code reads no file whose bytes are not those that were written for
this model file, KV type and library. What cannot be written or read costs a prefill, and is said nowhere else than in
the log and in `SessionsSaved`.
"""

import ctypes
import os
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import llama_cpp

from h2qd.sessions.folder import FolderError
from h2qd.sessions.record import Record, RecordError, check, read
from h2qd.wire.workers import SessionsSaved
from h2qd.worker import journal
from h2qd.worker.disk import Disk, remove, told
from h2qd.worker.llama import log
from h2qd.worker.llama.adapters import Used
from h2qd.worker.llama.context import STATE_HEAD, TOKEN_BYTES, Cache, Context
from h2qd.worker.placement import common


class Saved(NamedTuple):
    """A session's file that fits this context, and how many of the first tokens asked for it holds."""

    key: str
    shared: int
    adapters: Used


@dataclass(slots=True)
class _Held:
    key: str
    newer: bool


class Sessions:
    """The sessions in `context`'s sequences, and those on `disk`."""

    def __init__(self, context: Context, disk: Disk | None, kv_type: str, tick: Callable[[], None]) -> None:
        self._context = context
        self._disk = disk
        self._kv_type = kv_type
        self._tick = tick
        self._held: dict[int, _Held] = {}

    # --- in the cache -------------------------------------------------------------------------------

    def holds(self, cache: Cache) -> bool:
        """Whether a session goes on there."""
        return cache.sequence in self._held

    def cache_of(self, key: str) -> Cache | None:
        """Where this session goes on, unless that is on disk."""
        return next((self._context.caches[at] for at, held in self._held.items() if held.key == key), None)

    def belongs(self, cache: Cache, key: str) -> None:
        """A request of this session has left `cache`: what it holds is newer than anything else."""
        self._held = {at: held for at, held in self._held.items() if held.key != key}
        if cache.tokens and self._context.settled(cache):
            self._held[cache.sequence] = _Held(key, newer=True)

    def leave(self, cache: Cache) -> None:
        """A request takes `cache`: what a session has there goes to disk, as far as it is newer."""
        held = self._held.pop(cache.sequence, None)
        if held is not None and held.newer and self._disk is not None:
            self._write(self._disk, cache, held.key, durable=False)

    def take(self, cache: Cache) -> None:
        """A request of the session that `cache` holds goes on there, after all that it holds or a part of it."""
        self._held.pop(cache.sequence, None)

    def straighten(self, cache: Cache) -> None:
        """Make a session that goes on after all of its cells independent of whether it was on disk in between.

        Only a sliding window makes a difference; without a disk there is none. The room for that is on the disk too,
        so that it is not taken from the device's memory.
        """
        context = self._context
        if self._disk is None or not 0 < context.slides < len(cache.tokens) or not context.settled(cache):
            return
        try:
            with self._disk.folder.scratch(context.window_bytes(cache)) as memory:
                room = (ctypes.c_uint8 * len(memory)).from_buffer(memory)
                context.straighten(cache, room)
                del room  # or the memory could not be given back
        except OSError as error:
            journal.record("sessions.not_straightened", error)

    # --- on disk ------------------------------------------------------------------------------------

    def saved(self, key: str, prompt: Sequence[int], adapters: Used) -> Saved | None:
        """What the disk holds of this session, if that was computed with `adapters` and serves `prompt` at all."""
        if self._disk is None:
            return None
        try:
            with self._disk.folder.opened(key, self._disk.sha256) as file:
                record = read(file)
                if not self._fits(record, key, adapters):
                    return None
                tokens = _tokens(file, record)
        except (OSError, RecordError):
            return None
        return Saved(key, common(tokens, prompt[:-1]), adapters)

    def restore(self, saved: Saved, cache: Cache) -> bool:
        """Make `cache`, which no session holds, what was saved; where that fails, it is as it was or empty."""
        disk, context = self._disk, self._context
        if disk is None or not context.settled(cache):
            return False
        try:
            with disk.folder.opened(saved.key, disk.sha256) as file:
                record = check(file, self._tick)
                if not self._fits(record, saved.key, saved.adapters):
                    return False
                tokens = _tokens(file, record)
                # Through the descriptor: what is read is what was checked.
                done = context.restore(cache, f"/proc/self/fd/{file}", tokens, record.whole, saved.adapters)
                disk.folder.touch(file)
        except RecordError as error:
            journal.record("sessions.file_damaged", error)
            remove(disk, saved.key)
            return False
        except OSError as error:
            journal.record("sessions.not_read", error)
            return False
        return done

    @property
    def unsaved(self) -> int:
        """How many are newer than the disk, if there is one."""
        return len(self._newer())

    def _newer(self) -> list[tuple[Cache, _Held]]:
        held = self._held.items() if self._disk is not None else ()
        return [(self._context.caches[at], held) for at, held in held if held.newer]

    def save(self) -> SessionsSaved:
        """Write what is newer than the disk, to stay."""
        newer, disk = self._newer(), self._disk
        start_s = time.perf_counter()
        done = [] if disk is None else [self._write(disk, cache, held.key, durable=True) for cache, held in newer]
        for (cache, held), size in zip(newer, done, strict=True):
            held.newer = False
            if isinstance(size, str):
                del self._held[cache.sequence]
        return told(done, start_s)

    def forget(self, key: str) -> None:
        """Keep nothing of this session: its cells are anybody's, its file goes."""
        self._held = {at: held for at, held in self._held.items() if held.key != key}
        if self._disk is not None:
            remove(self._disk, key)

    def _fits(self, record: Record, key: str, adapters: Used) -> bool:
        """Whether a file can be read into a sequence of this context."""
        assert self._disk is not None  # noqa: S101 - asked of what is on it only
        return (
            record.key == key
            and record.sha256 == self._disk.sha256
            and record.kv_type == self._kv_type
            and record.adapters == self._context.mark(adapters)
            and record.engine == llama_cpp.__version__
            and record.streams == len(self._context.caches)
            and record.tokens <= self._context.size
        )

    def _write(self, disk: Disk, cache: Cache, key: str, *, durable: bool) -> int | str:
        """The size of the file, or why there is none."""
        context = self._context
        record = Record(
            key=key,
            sha256=disk.sha256,
            kv_type=self._kv_type,
            engine=llama_cpp.__version__,
            streams=len(context.caches),
            tokens=len(cache.tokens),
            whole=cache.whole,
            data_bytes=0,
            adapters=context.mark(cache.adapters),
        )

        def fill(path: str) -> int:
            log.capture()
            return context.save(cache, path)

        self._tick()
        try:
            return disk.folder.write(
                record,
                fill,
                expected_bytes=context.state_bytes(cache),
                quota_bytes=disk.quota_bytes,
                durable=durable,
            )
        except FolderError as error:
            reason = str(error)
        journal.record("sessions.not_written", reason=reason, told=log.last_error())
        return reason


def _tokens(file: int, record: Record) -> Sequence[int]:
    """The tokens at the beginning of a file's data. Raises `RecordError` where they are not as the record says."""
    size = STATE_HEAD.size + record.tokens * TOKEN_BYTES
    data = os.pread(file, size, 0)
    if len(data) != size or size > record.data_bytes or STATE_HEAD.unpack_from(data)[2] != record.tokens:
        raise RecordError("other tokens than it says")
    return array("i", data[STATE_HEAD.size :]).tolist()
