"""Where the daemon's socket is, and whether anybody listens there.

The probe is a plain connect to the socket's file, so a daemon that is down is told apart at once, and with
its reason, instead of after a silence: ZeroMQ itself connects in the background and never says that it cannot.
Callers: both clients before they open a connection, and `h2qctl doctor`.
"""

import os
import socket

from h2qctl.errors import H2qError
from h2qd.wire.names import shown

SYSTEM_SOCKET = "/run/h2qd/h2qd.sock"
ENVIRONMENT = "H2Q_SOCKET"
_PROBE_S = 1.0


def find(given: str | None = None) -> tuple[str, str]:
    """The socket's path and what chose it: an argument, `H2Q_SOCKET`, the system's daemon, or the user's own."""
    if given:
        return given.removeprefix("ipc://"), "--socket"
    if named := os.environ.get(ENVIRONMENT):
        return named.removeprefix("ipc://"), ENVIRONMENT
    if os.path.exists(SYSTEM_SOCKET):  # noqa: PTH110  # pathlib would cost each start 6 ms
        return SYSTEM_SOCKET, "the system's daemon"
    if folder := os.environ.get("XDG_RUNTIME_DIR"):
        return f"{folder}/h2qd/h2qd.sock", "XDG_RUNTIME_DIR"
    return f"/tmp/h2qd-{os.getuid()}/h2qd.sock", "the user's own daemon"  # noqa: S108  # the daemon checks the owner


def probe(path: str) -> None:
    """Return when somebody listens at `path`; else `H2qError` (unreachable, not_permitted, timeout) with the fix."""
    place = shown(path)
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        peer.settimeout(_PROBE_S)
        peer.connect(path)
    except FileNotFoundError:
        raise H2qError(
            "unreachable",
            f"cannot reach the daemon: there is no socket at {place}",
            "start it with: systemctl start h2qd   or name its socket with --socket PATH",
        ) from None
    except ConnectionRefusedError:
        raise H2qError(
            "unreachable",
            f"cannot reach the daemon: {place} is there, but nothing listens on it",
            "the daemon died or was stopped; start it with: systemctl restart h2qd",
        ) from None
    except PermissionError:
        raise H2qError(
            "not_permitted",
            f"cannot open {place}: this user may not use it",
            "add the user to the socket's group: sudo usermod -aG h2qd $USER, then log in again",
        ) from None
    except TimeoutError:
        raise H2qError(
            "timeout", f"cannot reach the daemon: it takes no connection on {place}", "h2qctl doctor"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise H2qError(
            "unreachable",
            f"cannot reach the daemon at {place}: {shown(str(error))}",
            "name its socket with --socket PATH",
        ) from None
    finally:
        peer.close()
