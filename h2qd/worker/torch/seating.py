"""Where a request goes on, and from which cells: those of its session, those that serve its text best, or none.

Called by `batch`; `placement` chooses among slots, `sessions` knows what belongs to whom. In this order: the slot
that holds the request's session, with all that it has of the text; the session's file, where that has more of the
text than any slot; any slot, rather one that no session holds. What a session loses by that is written first.
Invariant: the cells of a seated request hold the first tokens of its text and nothing else.
"""

from collections.abc import Sequence

from h2qd.worker.placement import Candidate, place
from h2qd.worker.torch.sessions import Sessions, Slot
from h2qd.worker.torch.work import Work


class Seating:
    """The slots of one model."""

    def __init__(self, slots: Sequence[Slot], sessions: Sessions) -> None:
        self._slots = slots
        self._sessions = sessions

    def seat(self, work: Work) -> None:
        """Give `work` a slot; only when one is idle. Computes nothing, but may write and read a file."""
        slot = self._own(work) or self._restored(work) or self._any(work)
        slot.work = work
        work.seat(slot.cells)

    def leave(self, slot: Slot, step: int) -> None:
        """The request at work there ended or pauses."""
        work, slot.work, slot.used = slot.work, None, step
        if work is not None and work.session:
            self._sessions.belongs(slot, work.session)

    def _own(self, work: Work) -> Slot | None:
        """The slot that holds the session, unless another request of it is at work or it has nothing of the text.

        All common tokens, however they were computed: a session's text depends on its own history only.
        """
        slot = self._sessions.slot_of(work.session)
        kept = slot.cells.reusable(work.text, exact=False) if slot is not None else 0
        if slot is None or kept == 0:
            return None
        slot.session, slot.newer = "", False
        slot.cells.cut(kept)
        return slot

    def _restored(self, work: Work) -> Slot | None:
        if self._sessions.saved(work.session, work.text) <= max(self._kept(work)):
            return None
        slot, _ = self._choose([0] * len(self._slots))
        self._sessions.leave(slot)
        if not self._sessions.restore(work.session, slot.cells):
            return None
        kept = slot.cells.reusable(work.text, exact=False)
        slot.cells.cut(kept)
        return slot if kept else None

    def _any(self, work: Work) -> Slot:
        kept = self._kept(work)
        slot, source = self._choose(kept)
        self._sessions.leave(slot)
        if source is not None:
            slot.cells.copy(source.cells, kept[self._slots.index(source)])
        else:
            slot.cells.cut(kept[self._slots.index(slot)])
        return slot

    def _kept(self, work: Work) -> list[int]:
        """Of how many first tokens of its text each slot has the cells; alone, only those that change nothing."""
        exact = all(slot.work is None for slot in self._slots)
        return [slot.cells.reusable(work.text, exact=exact) for slot in self._slots]

    def _choose(self, kept: Sequence[int]) -> tuple[Slot, Slot | None]:
        """The slot to take, and the one whose cells to copy into it first, if any."""
        chosen = place(
            [
                Candidate(count, len(slot.cells.tokens), slot.work is None, slot.used, bool(slot.session))
                for count, slot in zip(kept, self._slots, strict=True)
            ],
            self._slots[0].cells.room,
            copies=all(slot.cells.copies for slot in self._slots),
        )
        if chosen is None:
            raise RuntimeError("no slot is free")
        return self._slots[chosen.slot], None if chosen.source is None else self._slots[chosen.source]
