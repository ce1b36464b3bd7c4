"""Work of the daemon's own for a call, beside the core: imports, and what reads or changes files for a client.

A job ends its call with the reply that it returns or the `Refusal` that it raises; one that fails by our own defect
answers `internal`. It can be given up, by its client, its deadline or the daemon's end. Called by `commands`.
Invariant: every call that a job was begun for is answered exactly once.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass

from h2qd.core.records import Fault
from h2qd.logs import get_logger
from h2qd.runtime.calls import Call, Calls
from h2qd.runtime.refusal import Refusal
from h2qd.wire import messages as m

log = get_logger()

_ENDED = Fault("cancelled", "cannot go on: the work was given up")


class Jobs:
    """What is at work, by the number of its call."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._jobs: dict[int, _Job] = {}

    def begin(self, call: Call, work: Coroutine[None, None, m.Say]) -> None:
        """Have `work` end `call`."""
        job = self._jobs[call.number] = _Job(asyncio.get_running_loop().create_task(work))
        # A callback: a task that is cancelled before its first step runs no line of its own.
        job.task.add_done_callback(lambda _: self._ended(call, job))

    def give_up(self, call: Call, fault: Fault) -> bool:
        """End a call's job early; False when it has none."""
        job = self._jobs.get(call.number)
        if job is not None:
            job.give_up(fault)
        return job is not None

    def give_all_up(self, fault: Fault) -> None:
        """End them all."""
        for job in self._jobs.values():
            job.give_up(fault)

    def _ended(self, call: Call, job: "_Job") -> None:
        del self._jobs[call.number]
        if job.task.cancelled():
            self._calls.error(call, job.ending or _ENDED)
            return
        error = job.task.exception()
        if error is None:
            self._calls.reply(call, job.task.result())
        elif isinstance(error, Refusal):
            self._calls.error(call, error.fault)
        else:
            log.error("request.defect", request=call.name, op=call.op, exc_info=error)
            self._calls.error(call, defect(call))


@dataclass(slots=True, eq=False)
class _Job:
    """`ending` is set once it was given up: what its client will hear."""

    task: asyncio.Task[m.Say]
    ending: Fault | None = None

    def give_up(self, fault: Fault) -> None:
        if self.ending is None:
            self.ending = fault
            self.task.cancel()


def defect(call: Call) -> Fault:
    """What a client hears of our own mistake."""
    return Fault("internal", f"cannot do {call.op}: a defect, see the log at {call.name}")
