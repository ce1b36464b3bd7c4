"""`h2qctl doctor`: what stands between this user and the daemon, then what the daemon finds itself."""

import argparse
from collections.abc import Iterable, Iterator

from h2qctl import checks, text
from h2qctl.client import Client
from h2qctl.output import Output
from h2qctl.tables import table
from h2qd.wire import messages as m
from h2qd.wire.codes import EXIT_FAILED, EXIT_OK

SUMMARY = "find out what is wrong, and how to put it right"
EXAMPLES = ("h2qctl doctor", "h2qctl doctor --json | jq '.checks[] | select(.verdict != \"ok\")'")


def arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""
    del parser


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Check; the exit status is 1 when anything fails. As JSON, this side's checks stand before the daemon's."""
    own = checks.of_connection(client, args.socket)
    said: list[m.Check] = []
    if not failing(own):
        said = client.doctor().checks
    if out.json:
        out.line(out.checks(own))
    else:
        for line in lines([*own, *said]):
            out.line(line)
    return EXIT_FAILED if failing([*own, *said]) else EXIT_OK


def failing(found: Iterable[m.Check]) -> bool:
    """Whether anything in `found` keeps the daemon from working."""
    return any(check.verdict == "fail" for check in found)


def lines(found: list[m.Check]) -> Iterator[str]:
    """A row a check, and below each that is not well the way to put it right."""
    rows = table(["VERDICT", "CHECK", "DETAIL"], [(check.verdict, check.name, check.detail) for check in found], None)
    yield rows[0]
    for check, row in zip(found, rows[1:], strict=True):
        yield row
        if check.fix and check.verdict != "ok":
            yield f"         fix: {text.safe(check.fix)}"
