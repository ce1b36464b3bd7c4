"""`h2qctl unload`."""

import argparse

from h2qctl import residency, text
from h2qctl.client import Client
from h2qctl.output import Output
from h2qctl.progress import Progress
from h2qd.wire import messages as m
from h2qd.wire.codes import EXIT_OK

SUMMARY = "take a model's memory back; the active one's when none is named"
EXAMPLES = ("h2qctl unload", "h2qctl unload gemma3 --force")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("model", metavar="MODEL", nargs="?")
    parser.add_argument("--force", action="store_true", help="cut off running work on it")


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Do it."""
    with Progress(out) as progress:
        outcome = client.unload(args.model, force=args.force, on_progress=progress)
    out.reply(outcome, lines)
    return EXIT_OK


def lines(outcome: m.Unloaded) -> list[str]:
    """What came back."""
    if outcome.released is not None:
        return [residency.released(outcome.released)]
    return [f"{text.safe(outcome.model)}: {'unloaded' if outcome.changed else 'unchanged (it held no memory)'}"]
