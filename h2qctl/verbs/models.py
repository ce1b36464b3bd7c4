"""`h2qctl models`."""

import argparse
from functools import partial

from h2qctl import text
from h2qctl.client import Client
from h2qctl.output import Output
from h2qctl.tables import table
from h2qd.wire import messages as m
from h2qd.wire.codes import EXIT_OK

SUMMARY = "all registered models (also: ls, list)"
EXAMPLES = ("h2qctl models", "h2qctl ls -o wide", "h2qctl ls -q | xargs -n1 h2qctl plan")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("-o", dest="wide", choices=["wide"], help="more columns, nothing shortened")
    parser.add_argument("-q", "--quiet", action="store_true", help="only the names")


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Show them."""
    out.reply(client.models(), _names if args.quiet else partial(lines, wide=out.wide, width=out.width))
    return EXIT_OK


def lines(models: m.Models, *, wide: bool, width: int | None) -> list[str]:
    """A row a model."""
    head = ["NAME", "STATE", "SIZE", "QUANT", "PARAMS", "CTX"]
    rows: list[list[object]] = [
        [
            row.name,
            row.state if row.available or row.state == "missing" else f"{row.state},away",
            text.size(row.size_bytes),
            row.quantization,
            text.count(row.parameters),
            row.context_length or None,
        ]
        for row in models.models
    ]
    if wide:
        head += ["TYPE", "ARCH", "PATH", "REASON"]
        for cells, row in zip(rows, models.models, strict=True):
            cells += [row.type, row.architecture, row.path, row.reason]
    return table(head, rows, width)


def _names(models: m.Models) -> list[str]:
    return [text.safe(row.name) for row in models.models]
