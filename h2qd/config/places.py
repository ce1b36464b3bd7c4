"""Where the socket and the state live when nobody says: systemd's folders, the system's, or the user's.

Pure: the environment and the uid come in. The order is that of the daemon's likely homes: a unit, root, a login
session, a bare process.
"""

from collections.abc import Mapping


def default_socket(environ: Mapping[str, str], uid: int) -> str:
    """The path of the control socket for the user `uid`."""
    if folder := _systemd(environ, "RUNTIME_DIRECTORY"):
        return f"{folder}/h2qd.sock"
    if uid == 0:
        return "/run/h2qd/h2qd.sock"
    if folder := _absolute(environ.get("XDG_RUNTIME_DIR", "")):
        return f"{folder}/h2qd/h2qd.sock"
    return f"/tmp/h2qd-{uid}/h2qd.sock"  # noqa: S108 - the daemon makes this folder private before it binds


def default_state_dir(environ: Mapping[str, str], uid: int, home: str) -> str:
    """The folder for what must survive a restart. `home` is the user's home folder."""
    if folder := _systemd(environ, "STATE_DIRECTORY"):
        return folder
    if uid == 0:
        return "/var/lib/h2qd"
    if folder := _absolute(environ.get("XDG_STATE_HOME", "")):
        return f"{folder}/h2qd"
    return f"{home}/.local/state/h2qd"


def _systemd(environ: Mapping[str, str], variable: str) -> str:
    """The first folder of a systemd variable, which separates several by colons."""
    return _absolute(environ.get(variable, "").split(":")[0])


def _absolute(folder: str) -> str:
    """`folder` without a final slash, or "" when it is relative: XDG says to ignore those."""
    return folder.rstrip("/") if folder.startswith("/") else ""
