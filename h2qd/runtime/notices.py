"""Notices: what happened, numbered, kept for a while, and handed to everybody who watches."""

import time
from collections import deque
from collections.abc import Mapping

from h2qd.runtime.calls import Call, Calls
from h2qd.runtime.streams import NoticeOutlet
from h2qd.wire.limits import NOTICES_KEPT
from h2qd.wire.messages import EventsEnd, Notice, Scalar


class Notices:
    """The last `NOTICES_KEPT` notices and their readers."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._kept: deque[Notice] = deque(maxlen=NOTICES_KEPT)
        self._readers: dict[int, NoticeOutlet] = {}
        self._seq = 0

    def publish(
        self, topic: str, event: str, model: str | None = None, data: Mapping[str, Scalar] | None = None
    ) -> None:
        """Number a notice, keep it, and send it on."""
        self._seq += 1
        notice = Notice(self._seq, round(time.time() * 1000), topic, event, model, dict(data or {}))
        self._kept.append(notice)
        for number, outlet in list(self._readers.items()):
            outlet.add(notice)
            if (call := self._calls.get(number)) is not None:
                self._calls.pump(call)

    def watch(self, call: Call, since: int | None, *, follow: bool, window: int) -> None:
        """Send kept notices after number `since`, and, to who follows, those to come.

        Without `since`, who follows begins now, and who does not gets all that are kept.
        """
        after = (self._seq if follow else 0) if since is None else since
        earlier = [notice for notice in self._kept if notice.seq > after]
        call.outlet = outlet = NoticeOutlet(earlier)
        call.streaming = True
        call.credit = window if follow else max(window, len(earlier))
        self._readers[call.number] = outlet
        self._calls.pump(call)
        if not follow:
            self.end(call)

    def end(self, call: Call) -> None:
        """Answer a reader for good."""
        if self.forget(call) and not call.ended:
            self._calls.reply(call, EventsEnd(self._seq))

    def end_all(self) -> None:
        """Answer every reader: the daemon ends."""
        for number in list(self._readers):
            if (call := self._calls.get(number)) is not None:
                self.end(call)

    def forget(self, call: Call) -> bool:
        """Send `call` nothing more. False when it did not watch."""
        return self._readers.pop(call.number, None) is not None
