"""`h2qctl help`."""

import argparse

from h2qctl import parser as command_line
from h2qctl.client import Client
from h2qctl.output import Output
from h2qd.wire.codes import EXIT_OK

SUMMARY = "tell about a verb, with examples"
EXAMPLES = ("h2qctl help", "h2qctl help load")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the argument."""
    parser.add_argument("about", metavar="VERB", nargs="?")


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Print it."""
    del client
    if args.about is None:
        out.piece(command_line.overview())
    else:
        name = command_line.known(args.about)
        out.piece(command_line.verb_parser(name, command_line.load(name)).format_help())
    return EXIT_OK
