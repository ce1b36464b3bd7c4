"""The requests at work on one context, and the passes that serve them: continuous batching.

A step is one pass of the native library: either one token of every slot that decodes, or pieces of waiting prompts;
while there are both, they take turns. Slots join and leave between any two steps. Called by `engine`.
More requests than places wait in line: those that pause for a higher priority, and newcomers of no higher one.
Invariant: a slot is at work or in line exactly from `join` to its last message, and nobody waits beside a free place.

Tokens and prompts share no pass, because each slot has cells of its own: the library splits a batch into even parts,
so a mixed one would be two passes all the same (and takes as long, measured: 86 and 85 ms for 7 tokens and a piece of
16). Apart, a piece keeps the shape that makes its cache reusable, streams' texts leave before the piece is begun, and
a decode that fails costs only who took part. How large a piece may be while others decode is `pace`'s to say.

A request that is alone from its coming to its end gives the same text for the same seed, whatever ran before: only
such caches serve it that change nothing (see `context`). In company, batches have the shapes that chance gives them,
so no text is promised and every cached token is used. A request that paused is computed again in pieces, also what
had come token by token: it goes on with the same chooser, from logits that are the same but for rounding.
"""

import time

from h2qd.worker.disk import Disk
from h2qd.worker.engine import Beat, Said
from h2qd.worker.line import crowding, gives_way, head
from h2qd.worker.llama.context import Context, DecodeError, Piece
from h2qd.worker.llama.draft_model import DraftModel
from h2qd.worker.llama.model import Model
from h2qd.worker.llama.seating import Seating
from h2qd.worker.llama.sessions import Sessions
from h2qd.worker.llama.shares import Waiting, shares
from h2qd.worker.llama.turns import Turns
from h2qd.worker.llama.work import Work
from h2qd.worker.pace import Pace

_PIECE_GRIDS = 2
"""A prompt's piece while nobody decodes, in grids: larger ones are no faster on a CPU, and newcomers wait longer."""

_INTERRUPTIBLE_TOKENS_MIN = 32
"""Asking hundreds of times whether to go on costs about as much as a token; smaller passes just end."""


class Batch:
    """Works on `model`'s context, which must outlive it; `close` must come before that is freed."""

    def __init__(self, model: Model, beat: Beat, disk: Disk | None = None, kv_type: str = "f16") -> None:
        self.context = Context(model, self._interrupted)
        self.sessions = Sessions(self.context, disk, kv_type, beat.tick)
        draft = model.draft if model.draft is not None and model.draft.context else None
        self.draft_model = DraftModel(draft, beat, self.context.outputs - 1) if draft is not None else None
        self._beat = beat
        self._pace = Pace(model.batch)
        self._seating = Seating(self.context, self.sessions)
        self._places = self._seating.places
        self._line: list[Work] = []
        self._open: dict[int, Work] = {}  # all, by request; for other threads
        self._arrivals = 0
        self._steps = 0
        self._turns = Turns()
        self._tokens_next = False  # after prompts it is the turn of those who decode
        self._spoiled = False  # a cell may hold numbers that are none
        self._prefilling: list[Work] = []  # who takes part in the pass that runs

    def close(self) -> None:
        """Let go of what is at work, and of what was allocated."""
        for slot in self._open.values():
            slot.close()
        for place in self._places:
            place.work = None
        self._line.clear()
        self._open.clear()
        if self.draft_model is not None:
            self.draft_model.close()
        self.context.close()

    @property
    def busy(self) -> bool:
        """Requests are at work. Nobody waits while no one is."""
        return bool(self._open)

    @property
    def full(self) -> bool:
        """As many wait as there are places."""
        return len(self._open) >= 2 * len(self._places)

    def join(self, work: Work) -> None:
        """Take a request, into the place that serves it best or into the line; not when `full`. Computes nothing."""
        self._arrivals += 1
        work.arrived = self._arrivals
        self._open[work.request] = work
        self._line.append(work)
        paused = gives_way(self._at_work, work) if not self._idle else None
        if paused is not None:
            self._pause(paused)
        self._seat_all()

    def forget(self, session: str) -> None:
        """Keep nothing of this session, nor of what its requests are about to compute."""
        for slot in self._open.values():
            if slot.session == session:
                slot.session = ""
        self.sessions.forget(session)

    def cancel(self, request: int) -> None:
        """Have `request` end with the next step, and at once where that is its own. From any thread."""
        slot = self._open.get(request)
        if slot is not None:
            slot.cancelled = True

    def step(self) -> list[Said]:
        """One pass, or the ends of what was cancelled."""
        self._steps += 1
        said = self._cancelled() or self._pass()
        for place in self._places:
            slot = place.work
            if slot is not None and slot.ended:
                if slot.broken:
                    self.context.clear(place.cache)
                    self._spoiled = True
                self._seating.leave(place, self._steps)
        self._line = [slot for slot in self._line if not slot.ended]
        self._open = {request: slot for request, slot in self._open.items() if not slot.ended}
        if self._spoiled and not self._at_work:
            for place in self._places:
                self.sessions.leave(place.cache)
            self.context.clear_all()
            self._spoiled = False
        self._seat_all()
        return said

    @property
    def _idle(self) -> bool:
        return any(place.work is None for place in self._places)

    def _seat_all(self) -> None:
        while self._idle and (work := head(self._line)) is not None:
            self._line.remove(work)
            self._seating.seat(work)

    def _pause(self, work: Work) -> None:
        place = next(place for place in self._places if place.work is work)
        self._seating.leave(place, self._steps)
        work.pause()
        self._line.append(work)

    @property
    def _at_work(self) -> list[Work]:
        return [place.work for place in self._places if place.work is not None]

    def _cancelled(self) -> list[Said]:
        return [said for slot in self._open.values() if slot.cancelled for said in slot.cancel()]

    def _pass(self) -> list[Said]:
        at_work = self._at_work
        decodes = [slot for slot in at_work if not slot.rest]
        if self.context.adapts and at_work:  # a pass has one set of adapters
            adapters = self._turns.next(slot.adapters for slot in at_work)
            at_work = [slot for slot in at_work if slot.adapters == adapters]
        waiting = [slot for slot in at_work if slot.rest]
        decoding = [slot for slot in at_work if not slot.rest]
        if waiting and not (decoding and self._tokens_next):
            self._tokens_next = True
            if decodes and not decoding:
                self._turns.over()
            return self._prefill(waiting, decodes)
        self._tokens_next = False
        return self._decode(decoding, alone=not waiting and len(decoding) == 1) if decoding else []

    def _decode(self, slots: list[Work], *, alone: bool) -> list[Said]:
        for slot in slots:
            if (gap := slot.gap) is not None:
                self.context.shift(slot.cache, gap)
                slot.shifted(gap)
        drafts = self._drafts(slots[0]) if alone else 0
        pieces = [slot.next_of_answer(drafts) for slot in slots]
        began_s = time.perf_counter()
        try:
            rows = self.context.decode(pieces)
        except DecodeError as error:
            return [said for slot in slots for said in slot.undecoded(error)]
        said = self._computed(slots, pieces, rows)
        took_s, tokens = time.perf_counter() - began_s, len(pieces[0].tokens)
        if tokens == 1:  # others tell nothing of a stream's pass
            self._pace.decoded(took_s)
        if alone and self.draft_model is not None:
            self.draft_model.passed(tokens, took_s)
        return said

    def _drafts(self, slot: Work) -> int:
        """How many tokens a pass may guess for who decodes alone: as many as there are outputs, and room."""
        if not self.context.trims:
            return 0
        room: int = min(self.context.outputs, self.context.batch, self.context.size - len(slot.cache.tokens))
        return max(0, room - 1)

    def _prefill(self, waiting: list[Work], beside: list[Work]) -> list[Said]:
        taken = self._shares(waiting, beside)
        slots = [slot for slot in waiting if taken.get(slot)]
        pieces = [slot.next_of_prompt(taken[slot]) for slot in slots]
        tokens = sum(taken.values())
        self._prefilling = slots
        began_s = time.perf_counter()
        try:
            rows = self.context.decode(pieces, interruptible=tokens >= _INTERRUPTIBLE_TOKENS_MIN)
        except DecodeError as error:
            return [said for slot in slots for said in slot.undecoded(error)]
        if beside:
            self._pace.prefilled(tokens, time.perf_counter() - began_s)
        for slot in slots:
            slot.served = self._steps
        return self._computed(slots, pieces, rows)

    def _shares(self, waiting: list[Work], beside: list[Work]) -> dict[Work, int]:
        grid = self.context.grid
        if beside:
            budget = self._pace.between_tokens(crowding(waiting, beside))
        else:
            budget = grid * max(_PIECE_GRIDS, len(waiting))
        ordered = sorted(waiting, key=lambda slot: slot.served)
        outputs = self.context.outputs // len(waiting)  # there is one for each place at least
        asked = [Waiting(slot.ready(outputs), slot.cache.whole == len(slot.cache.tokens)) for slot in ordered]
        return dict(zip(ordered, shares(asked, min(budget, self.context.batch), grid), strict=True))

    def _computed(self, slots: list[Work], pieces: list[Piece], rows: list[range]) -> list[Said]:
        return [
            said
            for slot, piece, its_rows in zip(slots, pieces, rows, strict=True)
            for said in self._told(slot, piece, its_rows)
        ]

    def _told(self, slot: Work, piece: Piece, rows: range) -> list[Said]:
        """Tell `slot` what came of its piece."""
        output = self.context.vector if piece.vector else self.context.logits
        try:
            outputs = [output(row) for row in rows]
        except DecodeError as error:
            return slot.undecoded(error)
        said = slot.computed(outputs)
        surplus = slot.surplus
        if surplus and not self.context.trim(slot.cache, len(slot.cache.tokens) - surplus) and not slot.ended:
            said += slot.undecoded(DecodeError(-1))
        return said

    def _interrupted(self) -> bool:
        """Asked by a large pass, many times a second: also the sign that it moves.

        An abort costs all of the pass, so it goes on while anyone in it is wanted.
        """
        self._beat.tick()
        return all(slot.cancelled for slot in self._prefilling)
