"""The terminal tool as a real process: with pipes, in the background, or on a pseudo-terminal of its own."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from typing import Any

from tests.integration.scripted_daemon import WAIT_S

TOOL = [sys.executable, "-m", "h2qctl"]
ENVIRONMENT = {
    key: value for key, value in os.environ.items() if not key.startswith(("H2Q_", "XDG_RUNTIME", "NO_COLOR"))
}
ENVIRONMENT["TERM"] = "xterm"


def tool(socket_path: str, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [*TOOL, "--socket", socket_path, *words]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=30, check=False, env=ENVIRONMENT
    )


def begin(socket_path: str, *words: str) -> subprocess.Popen[str]:
    command = [*TOOL, "--socket", socket_path, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


CONTROLLED = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """A tool whose controlling terminal is a pseudo-terminal, typed at and read from."""

    def __init__(self, *words: str) -> None:
        self._fd, theirs = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", CONTROLLED, *TOOL, *words],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env=ENVIRONMENT,
        )  # fmt: skip
        os.close(theirs)
        self.seen = ""
        self.left: list[Any] = []

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def until(self, awaited: str) -> str:
        """What came up to and with `awaited`."""
        until = time.monotonic() + WAIT_S
        while awaited not in self.seen:
            assert select.select([self._fd], [], [], max(0, until - time.monotonic()))[0], repr(self.seen)
            self.seen += os.read(self._fd, 4096).decode()
        head, self.seen = self.seen.split(awaited, 1)
        return head + awaited

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def modes(self) -> list[Any]:
        """How the terminal treats keys and output."""
        return termios.tcgetattr(self._fd)

    def status(self) -> int:
        """How the tool ended, once it has; `left` then tells how it left the terminal."""
        while True:
            try:
                self.seen += os.read(self._fd, 4096).decode()
            except OSError:
                break
        self.left = self.modes()
        os.close(self._fd)
        return self._process.wait(WAIT_S)
