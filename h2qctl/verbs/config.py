"""`h2qctl config`."""

import argparse
from functools import partial

from h2qctl.client import Client
from h2qctl.output import Output
from h2qctl.tables import table
from h2qd.wire import messages as m
from h2qd.wire.codes import EXIT_OK

SUMMARY = "the configuration in force, and where each value comes from"
EXAMPLES = ("h2qctl config", "h2qctl config -o wide")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the argument."""
    parser.add_argument("-o", dest="wide", choices=["wide"], help="nothing shortened")


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Show it."""
    del args
    out.reply(client.config(), partial(lines, width=out.width))
    return EXIT_OK


def lines(config: m.Config, *, width: int | None) -> list[str]:
    """A row a key."""
    rows: list[list[object]] = [[value.key, _shown(value.value), value.source] for value in config.values]
    return table(["KEY", "VALUE", "SOURCE"], rows, width)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
