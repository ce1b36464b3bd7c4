"""`h2qctl load`."""

import argparse

from h2qctl import residency
from h2qctl.client import Client
from h2qctl.output import Output

SUMMARY = "make a model resident"
EXAMPLES = (
    "h2qctl load gemma3",
    "h2qctl load gemma3 --ctx 8192 --exact",
    "h2qctl load gemma3 --kv-type q8_0",
    "h2qctl load gemma3 --dry-run",
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    residency.arguments(parser)


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Do it, or show what it would take."""
    return residency.run(client.load, client, args, out)
