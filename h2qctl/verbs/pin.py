"""`h2qctl pin`."""

import argparse

from h2qctl import text
from h2qctl.client import Client
from h2qctl.output import Output
from h2qd.wire import messages as m
from h2qd.wire.codes import EXIT_OK

SUMMARY = "keep a model from being evicted"
EXAMPLES = ("h2qctl pin gemma3",)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the argument."""
    parser.add_argument("model", metavar="MODEL")


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Do it."""
    out.reply(client.pin(args.model), lines)
    return EXIT_OK


def lines(outcome: m.Pinned) -> list[str]:
    """Whether it is pinned now, and whether that is new."""
    now = "pinned" if outcome.pinned else "not pinned"
    return [f"{text.safe(outcome.model)}: {now if outcome.changed else f'unchanged ({now})'}"]
