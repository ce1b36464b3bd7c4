"""Bytes of tokens to text that may be shown: whole characters, and nothing of a stop string.

Pure. Called by whatever answers, one object a request; knows no engine. Invariant: however the bytes are cut into
pieces, the texts together are the same: the text before the stop string that is complete first (of several complete
at once, the one that began first), or all of it.
"""

import codecs
from collections.abc import Sequence


class Detokenizer:
    """Takes pieces until `stopped` or `finish`."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stopped = False
        self._stops = stops
        self._held = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, piece: bytes) -> str:
        """The text that is certain now. Bytes that can never become a character come as U+FFFD."""
        return self._pass(self._decoder.decode(piece))

    def finish(self) -> str:
        """What was held back, for nothing follows: the end of an incomplete character as U+FFFD."""
        text = self._pass(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return text + held

    def _pass(self, text: str) -> str:
        if self.stopped:
            return ""
        if not self._stops or not text:
            return text
        text = self._held + text
        cut = self._first_stop(text)
        if cut is not None:
            self.stopped = True
            self._held = ""
            return text[:cut]
        kept = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def _first_stop(self, text: str) -> int | None:
        """Where the stop string begins that ends first, or None."""
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        return min(found)[1] if found else None


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
