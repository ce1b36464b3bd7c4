"""`h2qctl switch`."""

import argparse

from h2qctl import residency
from h2qctl.client import Client
from h2qctl.output import Output

SUMMARY = "make a model the active one, unloading what must go"
EXAMPLES = ("h2qctl switch qwen3", "h2qctl switch qwen3 --force", "h2qctl switch qwen3 --dry-run")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    residency.arguments(parser)


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Do it, or show what it would take."""
    return residency.run(client.switch, client, args, out)
