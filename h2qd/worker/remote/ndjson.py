"""JSON lines out of a stream of bytes, as they come. Pure; lines are not decoded here. Called through `pieces`."""

from h2qd.worker.remote.errors import nonsense

LINE_BYTES_MAX = 256 * 1024


class Lines:
    """Takes bytes, gives whole lines without their ends; empty ones are left out. Holds at most one line."""

    def __init__(self, line_bytes_max: int = LINE_BYTES_MAX) -> None:
        self._rest = bytearray()
        self._line_bytes_max = line_bytes_max

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes. Raises `RemoteError` (remote_failed) at one that is too long."""
        end = data.rfind(b"\n")
        if end < 0:
            self._rest += data
            self._check(len(self._rest))
            return []
        whole = bytes(self._rest) + data[:end]
        self._rest = bytearray(data[end + 1 :])
        lines = [line.strip(b"\r \t") for line in whole.split(b"\n")]
        self._check(max(len(self._rest), *map(len, lines)))
        return [line for line in lines if line]

    def finish(self) -> list[bytes]:
        """The last line, where the stream ended without a line's end."""
        line = bytes(self._rest).strip(b"\r \t")
        self._rest.clear()
        return [line] if line else []

    def _check(self, size: int) -> None:
        if size > self._line_bytes_max:
            raise nonsense(f"a line of its answer is longer than {self._line_bytes_max} bytes")
