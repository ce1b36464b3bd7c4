"""`h2qctl plan`."""

import argparse
from collections.abc import Iterator

from h2qctl import context, text
from h2qctl.client import Client
from h2qctl.output import Output
from h2qctl.tables import facts, table
from h2qd.wire import messages as m
from h2qd.wire.codes import EXIT_OK

SUMMARY = "the memory a load would take, and what would have to go"
EXAMPLES = ("h2qctl plan gemma3", "h2qctl plan gemma3 --ctx 32768 --kv-type q8_0", "h2qctl plan gemma3 --slots 4")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("model", metavar="MODEL")
    context.arguments(parser)
    parser.add_argument("--slots", type=int, metavar="N", help="sequences served at a time")


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Show it. A model that does not fit is an answer here, not a failure."""
    out.reply(client.plan(args.model, ctx=args.ctx, slots=args.slots, kv_type=args.kv_type), lines)
    return EXIT_OK


def lines(plan: m.Plan) -> Iterator[str]:
    """The parts, their sum, and the verdict; where it does not fit, what a load would be given instead."""
    parts: list[tuple[object, ...]] = [(part.part, text.size(part.size_bytes)) for part in plan.parts]
    if plan.learned_bytes:
        parts.append(("learned", text.difference(plan.learned_bytes)))
    yield from table(["PART", "SIZE"], [*parts, ("total", text.size(plan.total_bytes))], None)
    yield ""
    pairs: list[tuple[str, object]] = [
        ("model", plan.model),
        ("context", f"{plan.ctx} tokens"),
        ("slots", plan.slots),
        ("KV cache", plan.kv_type),
        ("limit", f"{text.size(plan.limit_bytes)}, of which {text.size(plan.free_bytes)} are free"),
        ("fits", text.yes(plan.fits)),
        ("unloads first", ", ".join(plan.unloads)),
    ]
    if plan.reason:
        pairs.append(("reason", plan.reason))
    if not plan.fits:
        pairs.append(("instead", _lesser(plan.instead)))
    yield from facts(pairs)


def _lesser(offer: m.Offer | None) -> str | None:
    if offer is None:
        return None
    return f"{offer.model} with {context.described(offer.ctx, offer.kv_type)} ({text.size(offer.total_bytes)})"
