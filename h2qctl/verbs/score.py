"""`h2qctl score`."""

import argparse
from collections.abc import Iterator
from functools import partial

from h2qctl import adapters, logprobs
from h2qctl.client import Client
from h2qctl.errors import H2qError
from h2qctl.output import Output
from h2qctl.progress import Progress
from h2qctl.stdin import contents
from h2qctl.tables import facts
from h2qd.wire import messages as m
from h2qd.wire.codes import EXIT_OK

SUMMARY = "how likely a text is: log-probability and perplexity"
EXAMPLES = (
    'h2qctl score "The capital of France is Paris." --tokens',
    'h2qctl score " Paris" --context "The capital of France is"',
    "h2qctl score --file book.txt --window 512",
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("text", metavar="TEXT", nargs="?", help="the text; - reads it from stdin")
    parser.add_argument("--file", metavar="FILE", help="read the text from there")
    parser.add_argument("--context", metavar="TEXT", default="", help="what stands before it, and is not scored")
    parser.add_argument(
        "--window",
        type=int,
        metavar="N",
        help="cut it into windows of N tokens and score the second half of each, as perplexity is usually measured",
    )
    parser.add_argument("--tokens", action="store_true", help="a row for each token as well")
    parser.add_argument("--model", metavar="MODEL", help="the active model when absent")
    adapters.argument(parser, "judge with")


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Do it."""
    if (args.text is None) == (args.file is None):
        raise H2qError("invalid_request", "cannot tell what to score: give a text or a file", "h2qctl score --help")
    text = args.text if args.file is None and args.text != "-" else contents(args.file or "-")
    with Progress(out) as progress:
        scored = client.score(
            text,
            args.model,
            context=args.context,
            window=args.window,
            logprobs=args.tokens,
            adapters=args.adapter,
            on_progress=progress,
        )
    out.reply(scored, partial(lines, width=out.width))
    return EXIT_OK


def lines(scored: m.Scored, *, width: int | None) -> Iterator[str]:
    """The tokens, if they were asked for, then the figures."""
    if scored.logprobs:
        yield from logprobs.lines(scored.logprobs, width)
        yield ""
    yield from facts(
        [
            ("model", scored.model),
            ("tokens", f"{scored.tokens} in {scored.windows} windows" if scored.windows else scored.tokens),
            ("logprob", f"{scored.logprob:.4f}"),
            ("perplexity", f"{scored.perplexity:.4f} +/- {scored.stderr:.4f}"),
        ]
    )
