"""One question to a worker of its own: a process is started, asked, and gone before the answer is used.

For what the supervisor must not do itself, such as reading a model file or speaking to a server. Called by `imports`,
`remotes` and `pulls`. Invariant: no worker outlives its errand, also when the errand is cancelled.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import TypeVar

from h2qd.core.records import Fault
from h2qd.runtime.refusal import Refusal
from h2qd.runtime.workers import Exit, Patience, Worker
from h2qd.runtime.zygote import Zygote
from h2qd.wire.workers import FromWorker, InspectFile, ListModels, Loading, PullModel

_FIRST_NUMBER = 2**40
"""These workers are numbered from here, the core's workers from 1."""

_PULL_S_MAX = 86400.0
"""A large model over a thin line; the worker itself notices when nothing comes any more."""

_Answer = TypeVar("_Answer", bound=FromWorker)


class Errands:
    """Asks workers forked from `zygote`, which get `patience`."""

    def __init__(self, zygote: Zygote, patience: Patience) -> None:
        self._zygote = zygote
        self._patience = patience
        self._numbers = count(_FIRST_NUMBER)

    async def run(
        self,
        order: InspectFile | ListModels | PullModel,
        label: str,
        answer: type[_Answer],
        on_progress: Callable[[float], None],
    ) -> _Answer:
        """The answer to `order`. Raises `Refusal`: what the worker says, or how it ended."""
        found: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        gone = asyncio.Event()
        patience = replace(self._patience, load_s=_PULL_S_MAX) if isinstance(order, PullModel) else self._patience

        def take(message: FromWorker) -> None:
            if isinstance(message, Loading):
                on_progress(min(1.0, max(0.0, message.fraction)))
            elif isinstance(message, answer) and not found.done():
                found.set_result(message)
                worker.stop()

        def exited(end: Exit) -> None:
            if not found.done():
                found.set_exception(Refusal(end.fault or Fault("internal", "cannot tell what became of the work")))
            gone.set()

        try:
            worker = Worker(next(self._numbers), label, order, self._zygote, patience, take, exited)
        except OSError as error:
            what = f"cannot work on {label}: no process can be started for it ({error.strerror})"
            raise Refusal(Fault("load_failed", what)) from error
        try:
            result = await found
            await gone.wait()
        finally:
            if not gone.is_set():
                worker.stop(at_once=True)
        return result
