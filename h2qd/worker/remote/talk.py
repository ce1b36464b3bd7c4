"""The thread that talks: an asyncio loop of its own, beside the worker's two threads. Called by `engine`.

While anything is under way in it, it ticks the beat: each wait in here has an end of its own (`transport`, `pieces`),
so a slow server is not a hung worker, but a loop that does not turn is.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from h2qd.worker.engine import Beat, Progress

_TICK_S = 0.25

T = TypeVar("T")


class Talk:
    """Starts its thread when made."""

    def __init__(self, beat: Beat) -> None:
        self._beat = beat
        self._working = 0
        self._ticking = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="talk", daemon=True)
        self._thread.start()

    def run(self, work: Callable[[Progress], Coroutine[Any, Any, T]], progress: Progress) -> T:
        """Do `work` over there and wait for it; its progress is told in this thread. Raises what it raises."""
        news: queue.SimpleQueue[float | Future[T]] = queue.SimpleQueue()

        async def working() -> T:
            with self.working():
                return await work(news.put)

        future = asyncio.run_coroutine_threadsafe(working(), self._loop)
        future.add_done_callback(news.put)
        while not isinstance(item := news.get(), Future):
            progress(item)
        return item.result()

    def post(self, what: Callable[[], object]) -> None:
        """Have `what` called over there, after all that was posted before. From any thread."""
        self._loop.call_soon_threadsafe(what)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Within, over there: the beat grows."""
        self._working += 1
        if not self._ticking:
            self._tick()
        try:
            yield
        finally:
            self._working -= 1

    def close(self) -> None:
        """End what is under way, then the thread."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _tick(self) -> None:
        self._ticking = self._working > 0
        if self._ticking:
            self._beat.tick()
            self._loop.call_later(_TICK_S, self._tick)

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_asyncgens()  # and not the executor: a resolver there may take its time
