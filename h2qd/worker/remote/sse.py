"""Server-sent events out of a stream of bytes: the data of each, as they come (WHATWG HTML, 9.2.6).

Pure. Names and ids of events, retry times and comments mean nothing to the APIs spoken here and are left out, and so
is an event that the stream ends within: it is incomplete. Called through `pieces`.
"""

from h2qd.worker.remote.errors import nonsense

EVENT_BYTES_MAX = 256 * 1024
_BOM = b"\xef\xbb\xbf"


class Events:
    """Takes bytes, gives the data of whole events. A line ends with LF, CR LF or CR."""

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._began = False
        self._event_bytes_max = event_bytes_max

    def feed(self, data: bytes) -> list[bytes]:
        """The events that `data` completes. Raises `RemoteError` (remote_failed) at one that is too large."""
        self._rest += data
        if not self._began:
            if len(self._rest) < len(_BOM) and _BOM.startswith(self._rest):
                return []
            self._began = True
            if self._rest.startswith(_BOM):
                del self._rest[: len(_BOM)]
        whole = bytes(self._rest)
        at_end = whole.endswith(b"\r")  # an LF may follow, and belongs to it
        lines = whole[:-1].splitlines(keepends=True) if at_end else whole.splitlines(keepends=True)
        rest = lines.pop() if lines and not lines[-1].endswith((b"\n", b"\r")) else b""
        if at_end:
            rest += b"\r"
        self._rest = bytearray(rest)
        events = [event for line in lines if (event := self._line(line.rstrip(b"\r\n"))) is not None]
        self._check(self._size + len(self._rest))
        return events

    def finish(self) -> list[bytes]:
        """Nothing: an event that was not ended by an empty line does not count. A last CR may have ended one."""
        return self.feed(b"\n") if self._rest == b"\r" else []

    def _line(self, line: bytes) -> bytes | None:
        if not line:
            data, self._data, self._size = self._data, [], 0
            return b"\n".join(data) if data else None
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(line) + 1
            self._check(self._size)
        return None

    def _check(self, size: int) -> None:
        if size > self._event_bytes_max:
            raise nonsense(f"an event of its answer is larger than {self._event_bytes_max} bytes")
