"""`h2qctl cancel`."""

import argparse

from h2qctl import text
from h2qctl.client import Client
from h2qctl.output import Output
from h2qd.wire import messages as m
from h2qd.wire.codes import EXIT_OK

SUMMARY = "cancel a request in flight, by the name that ps shows"
EXAMPLES = ("h2qctl cancel r17",)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the argument."""
    parser.add_argument("request", metavar="REQUEST")


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Do it."""
    out.reply(client.cancel(args.request), lines)
    return EXIT_OK


def lines(outcome: m.Cancelled) -> list[str]:
    """What was cancelled."""
    return [f"{text.safe(outcome.request)}: cancelled"]
