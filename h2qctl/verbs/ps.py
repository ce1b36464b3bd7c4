"""`h2qctl ps`."""

import argparse
from collections.abc import Iterator
from functools import partial

from h2qctl import text
from h2qctl.client import Client
from h2qctl.output import Output
from h2qctl.tables import table
from h2qd.wire import messages as m
from h2qd.wire.codes import EXIT_OK

SUMMARY = "which models hold memory, and which requests run"
EXAMPLES = ("h2qctl ps", "h2qctl ps -o wide", "h2qctl ps -q")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("-o", dest="wide", choices=["wide"], help="more columns, nothing shortened")
    parser.add_argument("-q", "--quiet", action="store_true", help="only the models' names")


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Show them."""
    out.reply(client.ps(), _names if args.quiet else partial(lines, wide=out.wide, width=out.width))
    return EXIT_OK


def lines(ps: m.Ps, *, wide: bool, width: int | None) -> Iterator[str]:
    """A table of models and, where any run, one of requests."""
    head = ["NAME", "STATE", "SIZE", "CTX", "DEVICE", "UNTIL", "AGE"]
    rows: list[list[object]] = [
        [
            row.name,
            ",".join((row.state, *["pinned"] * row.pinned, *["away"] * (not row.available))),
            text.size(row.planned_bytes if row.size_bytes is None else row.size_bytes),
            row.ctx,
            row.device,
            text.duration(row.until_ms),
            text.duration(row.age_ms),
        ]
        for row in ps.models
    ]
    if wide:
        head += ["ACTIVE", "RUNNING", "WAITING", "PID", "KV", "LIMIT", "DEGRADED", "REASON"]
        for cells, row in zip(rows, ps.models, strict=True):
            cells += [text.yes(row.active), row.running, row.waiting, row.pid]
            cells += [row.kv_type, text.size(row.limit_bytes), "; ".join(row.degraded), row.reason]
    yield from table(head, rows, width)
    if ps.requests:
        yield ""
        yield from requests(ps.requests, wide=wide, width=width)


def requests(running: list[m.RequestRow], *, wide: bool, width: int | None) -> list[str]:
    """A row a request."""
    head = ["REQUEST", "OPERATION", "STATE", "MODEL", "TOKENS", "AGE"]
    rows: list[list[object]] = [
        [row.request, row.op, row.state, row.model, row.tokens, text.duration(row.age_ms)] for row in running
    ]
    if wide:
        head += ["UID", "PID", "PRIORITY"]
        for cells, row in zip(rows, running, strict=True):
            cells += [row.uid, row.pid, row.priority]
    return table(head, rows, width)


def _names(ps: m.Ps) -> list[str]:
    return [text.safe(row.name) for row in ps.models]
