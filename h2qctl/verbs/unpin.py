"""`h2qctl unpin`."""

import argparse

from h2qctl.client import Client
from h2qctl.output import Output
from h2qctl.verbs.pin import lines
from h2qd.wire.codes import EXIT_OK

SUMMARY = "let a model be evicted again"
EXAMPLES = ("h2qctl unpin gemma3",)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the argument."""
    parser.add_argument("model", metavar="MODEL")


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Do it."""
    out.reply(client.unpin(args.model), lines)
    return EXIT_OK
