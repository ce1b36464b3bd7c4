"""Which slot holds which session, whether it is newer than the disk, and the way there and back.

Called by `seating` and `batch`, and by `engine` when the model goes. A session is a conversation that its user named:
it goes on from cells that its own history computed, wherever they were since. Invariant: a session is held by one
slot at most, where no request works; of a file no number is read unless its bytes are those that were written for
this model, what it is computed in, its layout, and these libraries. What cannot be written or read costs a prefill,
and is said nowhere else than in the log and in `SessionsSaved`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from h2qd.sessions.folder import FolderError
from h2qd.sessions.record import Record, RecordError, check, read
from h2qd.wire.workers import SessionsSaved
from h2qd.worker import journal
from h2qd.worker.disk import Disk, remove, told
from h2qd.worker.placement import common
from h2qd.worker.torch.cache import Cells
from h2qd.worker.torch.libraries import torch, transformers
from h2qd.worker.torch.model import Model
from h2qd.worker.torch.stored import Layout
from h2qd.worker.torch.work import Work


@dataclass(slots=True, eq=False)
class Slot:
    """Cells, and the request at work there, if any. `used` is the step of its last end.

    `session`: the key of the one that goes on there, empty for none; `newer` than what the disk has of it.
    """

    cells: Cells
    work: Work | None = None
    used: int = 0
    session: str = ""
    newer: bool = False


class Sessions:
    """The sessions in the slots of `model`, and those on `disk`."""

    def __init__(self, model: Model, slots: Sequence[Slot], disk: Disk | None) -> None:
        self._slots = slots
        self._layout = Layout(model)
        self._disk = disk if self._layout.kept and model.lasting else None
        self._engine = f"torch {torch.__version__} {transformers.__version__} {model.device}"[:64]
        self._tick: Callable[[], None] = model.beat.tick

    # --- in the slots -------------------------------------------------------------------------------

    def slot_of(self, key: str) -> Slot | None:
        """Where this session goes on, unless that is on disk, or nowhere."""
        return next((slot for slot in self._slots if key and slot.session == key), None)

    def belongs(self, slot: Slot, key: str) -> None:
        """A request of this session has left `slot`: what it holds is newer than anything else."""
        self._drop(key)
        if slot.cells.tokens:
            slot.session, slot.newer = key, True

    def leave(self, slot: Slot) -> None:
        """A request takes `slot`: what a session has there goes to disk, as far as it is newer."""
        if slot.session and slot.newer and self._disk is not None:
            self._write(self._disk, slot, durable=False)
        slot.session, slot.newer = "", False

    def _drop(self, key: str) -> None:
        for slot in self._slots:
            if slot.session == key:
                slot.session, slot.newer = "", False

    # --- on disk ------------------------------------------------------------------------------------

    def saved(self, key: str, text: Sequence[int]) -> int:
        """How many of the first tokens of `text` the disk has of this session, in a way that serves here."""
        if self._disk is None or not key:
            return 0
        try:
            with self._disk.folder.opened(key, self._disk.sha256) as file:
                record = read(file)
                if not self._fits(record, key):
                    return 0
                shared = common(self._layout.tokens(file, record.tokens, record.data_bytes), text[:-1])
        except (OSError, RecordError):
            return 0
        return shared if self._layout.serves(record.tokens, shared) else 0

    def restore(self, key: str, cells: Cells) -> bool:
        """Make `cells`, which no session holds, what was saved; where that fails, they are empty."""
        disk = self._disk
        cells.clear()
        if disk is None:
            return False
        try:
            with disk.folder.opened(key, disk.sha256) as file:
                record = check(file, self._tick)
                if not self._fits(record, key):
                    return False
                tokens = self._layout.tokens(file, record.tokens, record.data_bytes)
                self._layout.read(file, tokens, record.whole, cells, self._tick)
                disk.folder.touch(file)
        except RecordError as error:
            journal.record("sessions.file_damaged", error)
            remove(disk, key)
        except OSError as error:
            journal.record("sessions.not_read", error)
        if not cells.tokens:
            cells.clear()
        return bool(cells.tokens)

    @property
    def unsaved(self) -> int:
        """How many are newer than the disk, if there is one."""
        return len(self._newer())

    def _newer(self) -> list[Slot]:
        return [slot for slot in self._slots if slot.session and slot.newer] if self._disk is not None else []

    def save(self) -> SessionsSaved:
        """Write what is newer than the disk, to stay. What cannot be written is nobody's from now on."""
        newer, disk = self._newer(), self._disk
        start_s = time.perf_counter()
        done = [] if disk is None else [self._write(disk, slot, durable=True) for slot in newer]
        for slot, size in zip(newer, done, strict=True):
            slot.newer = False
            if isinstance(size, str):
                slot.session = ""
        return told(done, start_s)

    def forget(self, key: str) -> None:
        """Keep nothing of this session: its cells are anybody's, its file goes."""
        self._drop(key)
        if self._disk is not None:
            remove(self._disk, key)

    def _fits(self, record: Record, key: str) -> bool:
        """Whether a file can be read into the cells of a slot; how it lies there is for `Layout` to say."""
        assert self._disk is not None  # noqa: S101 - asked of what is on it only
        return (
            record.key == key
            and record.sha256 == self._disk.sha256
            and record.kv_type == self._layout.kind
            and record.engine == self._engine
            and not record.adapters
        )

    def _write(self, disk: Disk, slot: Slot, *, durable: bool) -> int | str:
        """The size of the file, or why there is none."""
        cells = slot.cells
        record = Record(
            key=slot.session,
            sha256=disk.sha256,
            kv_type=self._layout.kind,
            engine=self._engine,
            streams=1,
            tokens=len(cells.tokens),
            whole=cells.whole,
            data_bytes=0,
        )
        self._tick()
        try:
            return disk.folder.write(
                record,
                lambda path: self._layout.write(cells, path, self._tick),
                expected_bytes=self._layout.data_bytes(len(cells.tokens)),
                quota_bytes=disk.quota_bytes,
                durable=durable,
            )
        except FolderError as error:
            reason = str(error)
        journal.record("sessions.not_written", reason=reason)
        return reason
