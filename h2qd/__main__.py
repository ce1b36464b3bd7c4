"""The command `h2qd`: reads arguments, loads the configuration, runs the daemon in the foreground."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from h2qd import __version__

if TYPE_CHECKING:
    from h2qd.config import Config

_EPILOG = """\
examples:
  h2qd                                     run with /etc/h2qd/h2qd.yaml, or with defaults
  h2qd --config configs/edge.yaml          run with this file
  h2qd --config configs/edge.yaml --check  say what is wrong with it, and exit
  h2qd --socket /tmp/h2qd.sock --state-dir /tmp/h2qd

environment: H2Q_CONFIG, H2Q_SOCKET, H2Q_STATE_DIR, H2Q_LOG_LEVEL (options win)
exit status: 0 stopped in order, 1 cannot run, 2 wrong usage or configuration
"""


def main(arguments: list[str] | None = None) -> int:
    """Run `h2qd` with command line `arguments`; the exit status."""
    parser = argparse.ArgumentParser(
        prog="h2qd",
        description="Supervise language models on this machine.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="configuration file")
    parser.add_argument("--socket", metavar="PATH", help="control socket, in place of socket.path")
    parser.add_argument("--state-dir", metavar="DIR", help="state folder, in place of state_dir")
    parser.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error, in place of log.level")
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    parser.add_argument("--invariants", action="store_true", help="check the core after every step (for tests)")
    parser.add_argument("--version", action="version", version=f"h2qd {__version__}")
    options = parser.parse_args(arguments)

    # The supervisor speaks no TLS; asyncio does without the module when it is absent, which saves 4 MB.
    sys.modules.setdefault("ssl", None)  # type: ignore[arg-type] # None bars the import

    from h2qd.config import ConfigError, load_config  # noqa: PLC0415 - --help and --version need none of it

    given = {"--socket": options.socket, "--state-dir": options.state_dir, "--log-level": options.log_level}
    try:
        config = load_config(options.config, os.environ, {name: text for name, text in given.items() if text})
    except ConfigError as error:
        print(error, file=sys.stderr)  # noqa: T201 - logs are set up from the configuration
        return 2
    if options.check:
        print(f"{config.file or 'built-in defaults'}: no mistakes found")  # noqa: T201 - the answer
        return 0
    return _run(config, checks=options.invariants)


def _run(config: "Config", *, checks: bool) -> int:
    from h2qd.daemon import run  # noqa: PLC0415 - as above
    from h2qd.errors import StartError  # noqa: PLC0415 - as above
    from h2qd.logs import configure, get_logger  # noqa: PLC0415 - as above

    configure(config.log.level, config.log.format)
    log = get_logger()
    for warning in config.warnings:
        log.warning("config.doubtful", what=warning)
    try:
        run(config, checks=checks)
    except StartError as error:
        log.error("daemon.cannot_start", error=str(error))  # noqa: TRY400 - the text says it all
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
