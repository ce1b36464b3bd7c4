"""`h2qctl explain`."""

import argparse
from collections.abc import Iterator
from functools import partial

from h2qctl import text
from h2qctl.client import Client
from h2qctl.output import Output
from h2qctl.tables import facts, table
from h2qd.wire import messages as m
from h2qd.wire.codes import EXIT_OK

SUMMARY = "the story of a model: what happened to it, and why"
EXAMPLES = ("h2qctl explain gemma3",)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the argument."""
    parser.add_argument("model", metavar="MODEL")


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Show it."""
    out.reply(client.explain(args.model), partial(lines, width=out.width))
    return EXIT_OK


def lines(explain: m.Explain, *, width: int | None) -> Iterator[str]:
    """Where the model is, then how it got there, oldest first."""
    pairs: list[tuple[str, object]] = [("model", explain.model), ("state", explain.state), ("reason", explain.reason)]
    if explain.failures:
        pairs += [("failures", explain.failures), ("next try in", text.duration(explain.retry_after_ms))]
    if explain.server is not None:
        pairs.append(("server", _server(explain.server)))
    yield from facts(pairs)
    if explain.story:
        yield ""
        rows = [[text.moment(line.at_ms), line.was, line.now, _why(line)] for line in explain.story]
        yield from table(["AT", "FROM", "TO", "WHY"], rows, width)


def _server(row: m.ServerRow) -> str:
    if row.breaker == "closed":
        return f"{row.name}, {row.failures} requests in a row failed: {row.reason}"
    when = "just now" if row.breaker == "half-open" else f"in {text.duration(row.retry_after_ms)}"
    return f"{row.name} is away ({row.breaker}), asked again {when}: {row.reason}"


def _why(line: m.StoryLine) -> str:
    return f"{line.why}: {line.detail}" if line.detail else line.why
