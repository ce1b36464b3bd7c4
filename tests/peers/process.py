"""Real servers of OpenAI's API as processes on loopback: started until they list their models, and seen to end."""

import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

START_S_MAX = 60.0


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def serving(
    command: Sequence[str], port: int, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """A server that `command` starts and that answers at `port`; what it says goes to `log`. It leads its group."""
    with (
        log.open("ab") as sink,
        subprocess.Popen(command, stdout=sink, stderr=sink, env=environment, process_group=0) as server,
    ):
        try:
            _wait_answers(server, f"http://127.0.0.1:{port}/v1/models", log)
            yield server
        finally:
            server.kill()


def _wait_answers(server: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline_s = time.monotonic() + START_S_MAX
    while server.poll() is None and time.monotonic() < deadline_s:
        with suppress(OSError), urllib.request.urlopen(url, timeout=5):  # noqa: S310 - it is http
            return
        time.sleep(0.1)  # between two questions: it announces itself to nobody
    raise AssertionError(log.read_text(errors="replace")[-2000:])
