"""What a client can find out about its way to the daemon, step by step; a step that fails ends the walk."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from h2qctl import address
from h2qctl.client import Client
from h2qctl.errors import H2qError
from h2qd import __version__
from h2qd.wire import messages as m


def of_connection(client: Client, given: str | None) -> list[m.Check]:
    """The checks made, the last of them failed if any did. `given` is what the user named as socket, if anything."""
    found: list[m.Check] = []
    for check in _walk(client, given):
        found.append(check)
        if check.verdict == "fail":
            break
    return found


def _walk(client: Client, given: str | None) -> Iterator[m.Check]:
    path, chosen_by = address.find(given)
    yield _socket(path, chosen_by)
    try:
        address.probe(path)
        yield m.Check("connection", "ok", "the daemon listens")
        hello = client.hello("h2qctl doctor")
    except H2qError as error:
        yield m.Check("connection", "fail", error.message, error.hint)
        return
    yield m.Check("answer", "ok", f"protocol {hello.protocol}; this user's access: {hello.access}")
    if hello.version == __version__:
        yield m.Check("versions", "ok", f"daemon and tool are both {__version__}")
    else:
        detail = f"the daemon is {hello.version}, this tool {__version__}"
        yield m.Check("versions", "warn", detail, "restart the daemon after an upgrade: systemctl restart h2qd")


def _socket(path: str, chosen_by: str) -> m.Check:
    """Whether there is a socket, and whether this user may open it."""
    detail = f"{path} (from {chosen_by})"
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return m.Check("socket", "fail", f"{detail}: there is none", "systemctl start h2qd, or --socket PATH")
    if not stat.S_ISSOCK(mode):
        return m.Check("socket", "fail", f"{detail}: this is not a socket", "name the daemon's socket: --socket PATH")
    if not os.access(path, os.R_OK | os.W_OK):
        fix = "add the user to the socket's group: sudo usermod -aG h2qd $USER, then log in again"
        return m.Check("socket", "fail", f"{detail}: mode {stat.S_IMODE(mode):o} keeps this user out", fix)
    return m.Check("socket", "ok", detail)
