"""`h2qctl rm`."""

import argparse

from h2qctl import text
from h2qctl.client import Client
from h2qctl.output import Output
from h2qd.wire import messages as m
from h2qd.wire.codes import EXIT_OK

SUMMARY = "forget a model; its file stays"
EXAMPLES = ("h2qctl rm gemma3",)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the argument."""
    parser.add_argument("model", metavar="MODEL")


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Do it."""
    out.reply(client.remove(args.model), lines)
    return EXIT_OK


def lines(outcome: m.Removed) -> list[str]:
    """What is gone, and what is not."""
    return [f"{text.safe(outcome.model)}: removed ({text.safe(outcome.path)} was left alone)"]
