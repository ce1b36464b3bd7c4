"""The supervisor: the one owner of the core's state, and the one caller of its machine.

Events are taken one at a time, in the order they came; an event that an effect brings about at once waits until
the effects before it are done. Exceptions do not reach the core: an effect that fails is logged with its event,
and its request is answered as our defect. With checks on, every step is followed by the invariants.
"""

from collections import deque
from collections.abc import Callable

from h2qd.core import invariants
from h2qd.core.effects import Effect
from h2qd.core.events import Event
from h2qd.core.machine import step
from h2qd.core.records import Rules, State
from h2qd.logs import get_logger

log = get_logger()


class Supervisor:
    """Holds the state. `perform` is set by the daemon before the first event."""

    def __init__(self, rules: Rules, *, checks: bool = False) -> None:
        self.state = State(rules)
        self.perform: Callable[[Effect], None] = _unset
        self.settled: Callable[[], None] = _nothing
        self._events: deque[Event] = deque()
        self._stepping = False
        self._checks = checks

    def post(self, event: Event) -> None:
        """Let something happen; done when this returns, unless called from inside an effect."""
        self._events.append(event)
        if self._stepping:
            return
        self._stepping = True
        try:
            while self._events:
                self._step(self._events.popleft())
        finally:
            self._stepping = False
        self.settled()

    def _step(self, event: Event) -> None:
        log.debug("core.event", happened=event)
        self.state, effects = step(self.state, event)
        if self._checks and (broken := invariants.check(self.state)) is not None:
            raise AssertionError(f"{broken}; after {event}; state: {self.state}")
        for effect in effects:
            try:
                self.perform(effect)
            except Exception:  # one effect's defect must not cost the others, or the daemon
                log.exception("effect.failed", effect=repr(effect), happened=repr(event))


def _unset(effect: Effect) -> None:
    raise AssertionError(f"nobody performs {effect}")


def _nothing() -> None:
    pass
