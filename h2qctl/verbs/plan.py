"""`h2qctl plan`."""

import argparse
from collections.abc import Iterator

from h2qctl import text
from h2qctl.client import Client
from h2qctl.output import Output
from h2qctl.tables import facts, table
from h2qd.wire import messages as m
from h2qd.wire.codes import EXIT_OK

SUMMARY = "the memory a load would take, and what would have to go"
EXAMPLES = ("h2qctl plan gemma3", "h2qctl plan gemma3 --ctx 32768")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--ctx", type=int, metavar="N", help="context in tokens")


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Show it. A model that does not fit is an answer here, not a failure."""
    out.reply(client.plan(args.model, ctx=args.ctx), lines)
    return EXIT_OK


def lines(plan: m.Plan) -> Iterator[str]:
    """The parts, their sum, and the verdict."""
    parts: list[tuple[object, ...]] = [(part.part, text.size(part.size_bytes)) for part in plan.parts]
    yield from table(["PART", "SIZE"], [*parts, ("total", text.size(plan.total_bytes))], None)
    yield ""
    yield from facts(
        [
            ("model", plan.model),
            ("context", f"{plan.ctx} tokens"),
            ("limit", text.size(plan.limit_bytes)),
            ("fits", text.yes(plan.fits)),
            ("unloads first", ", ".join(plan.unloads)),
            *([("reason", plan.reason)] if plan.reason else []),
        ]
    )
