"""The supervisor: the one owner of the core's state, and the one caller of its machine.

Events are taken one at a time, in the order they came; an event that an effect brings about at once waits until
the effects before it are done. Effects that fail make up for it themselves (`perform`); should one raise all the
same, the others are done and the daemon goes on. A defect of the core costs the event that met it: the state stays
what it was, whoever posted the event hears of it, and the events behind it are taken. With checks on, every step is
followed by the invariants.
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
    """Holds the state. The daemon sets `perform` before the first event, and `settled`: called after all events."""

    def __init__(self, rules: Rules, *, checks: bool = False) -> None:
        self.state = State(rules)
        self.perform: Callable[[Effect], None] = _unset
        self.settled: Callable[[], None] = _nothing
        self._events: deque[Event] = deque()
        self._stepping = False
        self._checks = checks

    def post(self, event: Event) -> None:
        """Let something happen; done when this returns, unless called from inside an effect or `settled`."""
        self._events.append(event)
        if self._stepping:
            return
        self._stepping = True
        try:
            defect = None
            while self._events:
                defect = self._take_all() or defect
                self.settled()
        finally:
            self._stepping = False
        if defect is not None:
            raise defect

    def _take_all(self) -> Exception | None:
        """Take every event that is there; the last defect met, if any."""
        defect = None
        while self._events:
            event = self._events.popleft()
            try:
                self._step(event)
            except Exception as error:  # the events behind it must not be lost with this one
                log.exception("core.defect", happened=repr(event))
                defect = error
        return defect

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
