"""What systemd is told: readiness, status and the watchdog's sign of life, by datagrams to `NOTIFY_SOCKET`.

The protocol of sd_notify(3). Without that variable, and whenever systemd does not listen, every call does nothing:
it never raises and never blocks. It decides nothing; the supervisor calls it from its loop, and the invariant is
that `watchdog` is only ever called from there, so that a loop that hangs is a daemon that systemd restarts.
"""

import os
import socket
from collections.abc import Mapping
from typing import Self

from h2qd.wire.names import shown


class Notifier:
    """Sends to `address`, a path or "@" and an abstract name; to nobody when it is empty.

    `watchdog_interval_s`: how often `watchdog` must be called (half of what systemd allows), None: never.
    """

    def __init__(self, address: str, watchdog_interval_s: float | None = None) -> None:
        self.watchdog_interval_s = watchdog_interval_s
        self._address = _socket_name(address)
        self._socket: socket.socket | None = None
        if self._address:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_UNIX, kind)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], pid: int | None = None) -> Self:
        """The notifier for `environ`. `pid`: the process that the watchdog must be meant for; None: this one."""
        return cls(environ.get("NOTIFY_SOCKET", ""), _watchdog_interval_s(environ, pid or os.getpid()))

    def ready(self, status: str = "") -> bool:
        """The daemon serves. Each of these calls tells whether the datagram was taken."""
        return self._send("READY=1", *_status(status))

    def status(self, text: str) -> bool:
        """One line for `systemctl status`."""
        return self._send(*_status(text))

    def watchdog(self) -> bool:
        """The loop turns."""
        return self._send("WATCHDOG=1")

    def stopping(self, status: str = "") -> bool:
        """The daemon is on its way out."""
        return self._send("STOPPING=1", *_status(status))

    def main_pid(self, pid: int) -> bool:
        """`pid` is the daemon; needed only where systemd started something that started it."""
        return self._send(f"MAINPID={pid}")

    def close(self) -> None:
        """Further calls do nothing."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *assignments: str) -> bool:
        if self._socket is None or not assignments:
            return False
        try:
            self._socket.sendto("\n".join(assignments).encode("utf-8", "backslashreplace"), self._address)
        except (OSError, ValueError):  # nobody there, no room, no such address
            return False
        return True


def _socket_name(address: str) -> bytes:
    """`address` as the kernel takes it; empty for what is none, such as vsock: (between machines)."""
    try:
        name = os.fsencode(address)
    except UnicodeEncodeError:
        return b""
    if name.startswith(b"@"):
        return b"\0" + name[1:]
    return name if name.startswith(b"/") else b""


def _status(text: str) -> tuple[str, ...]:
    """The assignment, on one line: a newline in a model's name must not become an assignment of its own."""
    return (f"STATUS={shown(text)}",) if text else ()


def _watchdog_interval_s(environ: Mapping[str, str], pid: int) -> float | None:
    """Half of WATCHDOG_USEC, if it is set and meant for `pid`."""
    text = environ.get("WATCHDOG_USEC", "")
    meant = environ.get("WATCHDOG_PID", "")
    if not (text.isascii() and text.isdigit() and len(text) <= 18) or meant not in ("", str(pid)):
        return None
    return int(text) / 2e6 or None
