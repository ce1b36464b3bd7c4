"""What `load` and `switch` have in common: their options, their dry run, and how their outcome reads."""

import argparse
from collections.abc import Callable, Iterator

from h2qctl import text
from h2qctl.client import Client
from h2qctl.output import Output
from h2qctl.progress import Progress
from h2qctl.verbs.plan import lines as plan_lines
from h2qd.wire import messages as m
from h2qd.wire.codes import EXIT_OK, EXIT_REFUSED


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--ctx", type=int, metavar="N", help="context in tokens")
    parser.add_argument("--reset", action="store_true", help="forget the model's failures first")
    parser.add_argument("--force", action="store_true", help="cut off running work on what must go")
    parser.add_argument(
        "--dry-run", action="store_true", help="only show the plan; exit 5 when the model would not fit"
    )


def run(make: Callable[..., m.Residency], client: Client, args: argparse.Namespace, out: Output) -> int:
    """Make the model resident by `make`, a method of the client, or show what that would take."""
    if args.dry_run:
        plan = client.plan(args.model, ctx=args.ctx)
        out.reply(plan, plan_lines)
        return EXIT_OK if plan.fits else EXIT_REFUSED
    with Progress(out) as progress:
        outcome = make(args.model, ctx=args.ctx, reset=args.reset, force=args.force, on_progress=progress)
    out.reply(outcome, lines)
    return EXIT_OK


def lines(outcome: m.Residency) -> Iterator[str]:
    """What went, what came, and how long it took."""
    for gone in outcome.unloaded:
        yield released(gone)
    state = f"{outcome.ctx} tokens of context, {text.size(outcome.memory_bytes)}"
    if outcome.changed:
        yield f"{text.safe(outcome.model)}: loaded in {text.duration(outcome.total_ms)} ({state})"
    else:
        yield f"{text.safe(outcome.model)}: unchanged ({state})"


def released(gone: m.Released) -> str:
    """What one unload gave back."""
    return (
        f"{text.safe(gone.model)}: unloaded in {text.duration(gone.ms)} "
        f"({text.size(gone.freed_bytes)} of {text.size(gone.held_bytes)} came back)"
    )
