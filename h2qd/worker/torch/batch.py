"""The requests at work on one model, and the passes that serve them: continuous batching.

A step is one pass: either a token of every answer that is past its prompt, all together, or a piece of what one
request reads (its prompt, a text to score); while there are both, they take turns, and `pace` says how large a piece
may be. Requests join and leave between any two steps. More than there are slots wait in line: those that pause for a
higher priority, and newcomers of no higher one. Called by `engine`.
Invariant: who is at work has a slot, and only slots have cells; nobody waits beside a free slot.

A lone answer is the same for the same seed, whatever ran before: only such cells of others serve it that change
nothing (see `cache`). One that belongs to a session goes on from what that computed. In company an answer's numbers
are the same but for rounding, because products of several rows add up in another order than those of one; attention
is each row's own.
Models whose positions are scaled by the longest row of a pass decode by turns (`Model.rows_max`).
"""

import time

from h2qd.worker.disk import Disk
from h2qd.worker.engine import Said
from h2qd.worker.line import crowding, gives_way, head
from h2qd.worker.pace import Pace
from h2qd.worker.torch.generation import Generation
from h2qd.worker.torch.model import InterruptedPassError, Model
from h2qd.worker.torch.seating import Seating
from h2qd.worker.torch.sessions import Sessions, Slot
from h2qd.worker.torch.work import Work


class Batch:
    """Works on `model`, for `slots` requests at a time."""

    def __init__(self, model: Model, slots: int, disk: Disk | None = None) -> None:
        self._model = model
        self._slots = [Slot(model.cells()) for _ in range(slots)]
        self.sessions = Sessions(model, self._slots, disk)
        self._seating = Seating(self._slots, self.sessions)
        self._pace = Pace(model.piece)
        self._line: list[Work] = []
        self._open: dict[int, Work] = {}  # all, by request; for other threads
        self._arrivals = 0
        self._steps = 0
        self._tokens_next = False  # after a piece it is the turn of those who decode

    @property
    def busy(self) -> bool:
        """Requests are at work. Nobody waits while no one is."""
        return bool(self._open)

    @property
    def full(self) -> bool:
        """As many wait as there are slots."""
        return len(self._open) >= 2 * len(self._slots)

    def join(self, work: Work) -> None:
        """Take a request; not when `full`. Computes nothing."""
        self._arrivals += 1
        work.arrived = self._arrivals
        self._open[work.request] = work
        self._line.append(work)
        paused = gives_way(self._at_work, work) if not self._idle else None
        if paused is not None:
            self._seating.leave(next(slot for slot in self._slots if slot.work is paused), self._steps)
            paused.pause()
            self._line.append(paused)
        self._seat_all()

    def forget(self, session: str) -> None:
        """Keep nothing of this session, nor of what its requests are about to compute."""
        for work in self._open.values():
            if work.session == session:
                work.session = ""
        self.sessions.forget(session)

    def cancel(self, request: int) -> None:
        """Have `request` end within the next step: inside the pass, unless others take part. From any thread."""
        work = self._open.get(request)
        if work is not None:
            work.wanted.cancelled = True

    def step(self) -> list[Said]:
        """One pass, or the ends of what was cancelled."""
        self._steps += 1
        said = [one for work in self._open.values() if work.wanted.cancelled for one in work.cancel()]
        said = said or self._pass()
        for slot in self._slots:
            if slot.work is not None and slot.work.ended:
                self._end(slot, slot.work)
        self._line = [work for work in self._line if not work.ended]
        self._open = {request: work for request, work in self._open.items() if not work.ended}
        self._seat_all()
        return said

    def _end(self, slot: Slot, work: Work) -> None:
        if work.broken:
            slot.cells.clear()
            if work.session:
                self.forget(work.session)
        self._seating.leave(slot, self._steps)

    @property
    def _at_work(self) -> list[Work]:
        return [slot.work for slot in self._slots if slot.work is not None]

    @property
    def _idle(self) -> bool:
        return any(slot.work is None for slot in self._slots)

    def _seat_all(self) -> None:
        while self._idle and (work := head(self._line)) is not None:
            self._line.remove(work)
            self._seating.seat(work)

    def _pass(self) -> list[Said]:
        at_work = self._at_work
        reading = [work for work in at_work if work.ready]
        decoding = [work for work in at_work if isinstance(work, Generation) and not work.ready]
        piece = bool(reading) and not (decoding and self._tokens_next)
        self._tokens_next = piece
        if piece:
            first = min(reading, key=_longest_ago)
            return self._read(first, self._between(crowding(reading, decoding)) if decoding else 0)
        return self._decode(sorted(decoding, key=_longest_ago)[: self._model.rows_max]) if decoding else []

    def _between(self, crowd: float) -> int:
        """How many tokens a piece may have between two tokens of streams: a power of two.

        PyTorch's kernels (oneDNN) keep what they prepared for each shape that they met, so there should be few.
        """
        return 1 << (self._pace.between_tokens(crowd).bit_length() - 1)

    def _read(self, work: Work, between: int) -> list[Said]:
        """A piece of `work`, of `between` tokens at most if streams go on beside it."""
        count = min(work.ready, between or self._model.piece)
        work.served = self._steps
        began_s = time.perf_counter()
        try:
            said = work.step(count)
        except InterruptedPassError:
            return work.cancel()
        if between:
            self._pace.prefilled(count, time.perf_counter() - began_s)
        return said

    def _decode(self, answers: list[Generation]) -> list[Said]:
        began_s = time.perf_counter()
        for answer in answers:
            answer.served = self._steps
        try:
            rows = self._model.next_logits([answer.row for answer in answers])
        except InterruptedPassError:  # nobody in it is wanted any more
            return [said for answer in answers for said in answer.cancel()]
        said = [said for answer, logits in zip(answers, rows, strict=True) for said in answer.computed(logits)]
        self._pace.decoded(time.perf_counter() - began_s)
        return said


def _longest_ago(work: Work) -> tuple[int, int]:
    return work.served, work.arrived
