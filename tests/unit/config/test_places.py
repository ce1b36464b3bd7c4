"""Where the socket and the state live when nobody says."""

from h2qd.config.places import default_socket, default_state_dir

SESSION = {"XDG_RUNTIME_DIR": "/run/user/5", "XDG_STATE_HOME": "/home/a/state"}
UNIT = {"RUNTIME_DIRECTORY": "/run/h2qd:/run/other", "STATE_DIRECTORY": "/var/lib/h2qd/"}


def test_sockets() -> None:
    assert default_socket(SESSION | UNIT, 5) == "/run/h2qd/h2qd.sock"
    assert default_socket(SESSION, 0) == "/run/h2qd/h2qd.sock"
    assert default_socket(SESSION, 5) == "/run/user/5/h2qd/h2qd.sock"
    assert default_socket({}, 5) == "/tmp/h2qd-5/h2qd.sock"  # noqa: S108 - a string


def test_states() -> None:
    assert default_state_dir(SESSION | UNIT, 5, "/home/a") == "/var/lib/h2qd"
    assert default_state_dir(SESSION, 0, "/root") == "/var/lib/h2qd"
    assert default_state_dir(SESSION, 5, "/home/a") == "/home/a/state/h2qd"
    assert default_state_dir({}, 5, "/home/a") == "/home/a/.local/state/h2qd"


def test_relative_folders_do_not_count() -> None:
    assert default_socket({"XDG_RUNTIME_DIR": "run", "RUNTIME_DIRECTORY": "x"}, 5).startswith("/tmp/")  # noqa: S108
    assert default_state_dir({"XDG_STATE_HOME": "state"}, 5, "/home/a") == "/home/a/.local/state/h2qd"
