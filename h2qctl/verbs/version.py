"""`h2qctl version`."""

import argparse

from h2qctl.client import Client
from h2qctl.output import Output
from h2qctl.tables import facts
from h2qd import __version__
from h2qd.wire import messages as m
from h2qd.wire.codes import EXIT_OK
from h2qd.wire.limits import PROTOCOL_VERSION

SUMMARY = "versions of this tool, of the daemon, and of what it runs on"
EXAMPLES = ("h2qctl version", "h2qctl --version")


def arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""
    del parser


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Show them; this tool's own is told even when the daemon is down."""
    del args
    if not out.json:
        out.line(f"h2qctl {__version__}, protocol {PROTOCOL_VERSION}")
    out.reply(client.version(), lines)
    return EXIT_OK


def lines(version: m.Version) -> list[str]:
    """The daemon's, then those of Python and its libraries, one a line."""
    return [
        f"h2qd {version.version}, protocol {version.protocol}",
        *facts(sorted({**version.libraries, "python": version.python}.items())),
    ]
