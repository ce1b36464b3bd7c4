"""What `load` and `switch` have in common: their options, their dry run, and how their outcome reads."""

import argparse
from collections.abc import Callable, Iterator

from h2qctl import context, text
from h2qctl.client import Client
from h2qctl.output import Output
from h2qctl.progress import Progress
from h2qctl.verbs.plan import lines as plan_lines
from h2qd.wire import messages as m
from h2qd.wire.codes import EXIT_OK, EXIT_REFUSED


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("model", metavar="MODEL")
    context.arguments(parser)
    parser.add_argument("--exact", action="store_true", help="refuse rather than give less than was asked for")
    parser.add_argument("--reset", action="store_true", help="forget the model's failures first")
    parser.add_argument("--force", action="store_true", help="cut off running work on what must go")
    parser.add_argument(
        "--dry-run", action="store_true", help="only show the plan; exit 5 when the load would be refused"
    )


def run(make: Callable[..., m.Residency], client: Client, args: argparse.Namespace, out: Output) -> int:
    """Make the model resident by `make`, a method of the client, or show what that would take."""
    if args.dry_run:
        plan = client.plan(args.model, ctx=args.ctx, kv_type=args.kv_type)
        out.reply(plan, plan_lines)
        lesser = plan.instead is not None and not args.exact
        return EXIT_OK if plan.fits or lesser else EXIT_REFUSED
    with Progress(out) as progress:
        outcome = make(
            args.model,
            ctx=args.ctx,
            kv_type=args.kv_type,
            exact=args.exact,
            reset=args.reset,
            force=args.force,
            on_progress=progress,
        )
    out.reply(outcome, lines)
    return EXIT_OK


def lines(outcome: m.Residency) -> Iterator[str]:
    """What went, what came and how long it took, then what is not as asked, and what still holds memory."""
    for gone in outcome.unloaded:
        yield released(gone)
    name = text.safe(outcome.model)
    state = f"{text.safe(context.described(outcome.ctx, outcome.kv_type))}, {text.size(outcome.memory_bytes)}"
    if outcome.changed:
        yield f"{name}: loaded in {text.duration(outcome.total_ms)} ({state})"
    else:
        yield f"{name}: unchanged ({state})"
    for less in outcome.degraded:
        yield f"{name}: less than asked for: {text.safe(less)}"
    for going in outcome.draining:
        yield f"{text.safe(going)}: draining; it is unloaded once its running work has ended"
    for kept in outcome.parked:
        yield f"{text.safe(kept)}: parked; its context is freed, its process kept for a fast return"


def released(gone: m.Released) -> str:
    """What one unload gave back."""
    return (
        f"{text.safe(gone.model)}: unloaded in {text.duration(gone.ms)} "
        f"({text.size(gone.freed_bytes)} of {text.size(gone.held_bytes)} came back)"
    )
