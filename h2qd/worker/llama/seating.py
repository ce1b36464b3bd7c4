"""Where a request goes on, and from which cells: those of its session, those that serve its text best, or none.

Called by `batch`; `placement` chooses among caches, `sessions` knows what belongs to whom. In this order: the
sequence that holds the request's session, with all that it has; the session's file, where that has more of the text
than any cache; any sequence, rather one that no session holds. What a session loses by that is written first.
Invariant: the cache of a seated request holds the first tokens of its text and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from h2qd.worker.llama.context import Cache, Context
from h2qd.worker.llama.sessions import Sessions
from h2qd.worker.llama.work import Work
from h2qd.worker.placement import Candidate, place


@dataclass(slots=True, eq=False)
class Place:
    """A sequence of the cache, and the request at work on it, if any. `used` is the step of its last end."""

    cache: Cache
    work: Work | None = None
    used: int = 0


class Seating:
    """The places of `context`."""

    def __init__(self, context: Context, sessions: Sessions) -> None:
        self.places = [Place(cache) for cache in context.caches]
        self._context = context
        self._sessions = sessions

    def seat(self, work: Work) -> None:
        """Give `work` a place; only when one is idle. Computes nothing, but may write and read a file."""
        at = self._own(work) or self._restored(work) or self._any(work)
        at.work = work
        self._context.adapt(at.cache, work.adapters)
        work.seat(at.cache)

    def leave(self, at: Place, step: int) -> None:
        """The request at work there ended or pauses."""
        work, at.work, at.used = at.work, None, step
        if at.cache.clean is not None:
            self._context.keep(at.cache, at.cache.clean)
        if work is not None and work.session:
            self._sessions.belongs(at.cache, work.session)

    def _own(self, work: Work) -> Place | None:
        """The place that holds the session, unless another request of it is at work or it has nothing of the text.

        All common tokens, however they were computed: a session's text depends on its own history only. One that goes
        on after all it has gives the same text as from its file; with a slid window, a file may serve less otherwise.
        """
        cache = self._sessions.cache_of(work.session) if work.session else None
        if cache is None:
            return None
        kept = self._context.reusable(cache, work.text, work.adapters, exact=False)
        if kept == 0:
            return None
        self._sessions.take(cache)
        if kept == len(cache.tokens):
            self._sessions.straighten(cache)
        else:
            self._context.keep(cache, kept)
        return next(at for at in self.places if at.cache is cache)

    def _restored(self, work: Work) -> Place | None:
        saved = self._sessions.saved(work.session, work.text, work.adapters) if work.session else None
        if saved is None or saved.shared <= max(self._kept(work)):
            return None
        at, _ = self._choose([0] * len(self.places))
        self._sessions.leave(at.cache)
        if not self._sessions.restore(saved, at.cache):
            return None
        kept = self._context.reusable(at.cache, work.text, work.adapters, exact=False)
        self._context.keep(at.cache, kept)
        return at if kept else None

    def _any(self, work: Work) -> Place:
        kept = self._kept(work)
        at, source = self._choose(kept)
        self._sessions.leave(at.cache)
        if source is not None:
            self._context.copy(self.places[source].cache, at.cache)
        self._context.keep(at.cache, kept[self.places.index(at) if source is None else source])
        return at

    def _kept(self, work: Work) -> list[int]:
        """Of how many first tokens of its text each cache has the cells; alone, only those that change nothing."""
        exact = all(at.work is None for at in self.places)
        return [self._context.reusable(at.cache, work.text, work.adapters, exact=exact) for at in self.places]

    def _choose(self, kept: Sequence[int]) -> tuple[Place, int | None]:
        chosen = place(
            [
                Candidate(count, len(at.cache.tokens), at.work is None, at.used, self._sessions.holds(at.cache))
                for count, at in zip(kept, self.places, strict=True)
            ],
            self._context.size,
            copies=self._context.copies,
        )
        if chosen is None:
            raise RuntimeError("no place is free")
        return self.places[chosen.slot], chosen.source
