"""`h2qctl tokenize`."""

import argparse

from h2qctl import logprobs
from h2qctl.client import Client
from h2qctl.output import Output
from h2qctl.stdin import whole
from h2qctl.tables import table
from h2qd.wire import messages as m
from h2qd.wire.codes import EXIT_OK

SUMMARY = "the tokens of a text"
EXAMPLES = (
    'h2qctl tokenize "Once upon a time"',
    "h2qctl tokenize --count - < prompt.txt",
    'h2qctl tokenize --special --pieces "<end_of_turn>"',
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("text", metavar="TEXT", help="the text; - reads it from stdin")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--ids", action="store_true", help="their numbers on one line (so it is when nothing is said)")
    how.add_argument("--pieces", action="store_true", help="a row for each, with the text that it stands for")
    how.add_argument("--count", action="store_true", help="only how many there are")
    parser.add_argument("--special", action="store_true", help="control tokens written out count as such")
    parser.add_argument("--model", metavar="MODEL", help="the active model when absent")


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Do it."""
    text = whole() if args.text == "-" else args.text
    tokens = client.tokenize(text, args.model, special=args.special, pieces=args.pieces)
    if args.pieces:
        out.reply(tokens, lambda reply: pieces(reply, out.width))
    else:
        out.reply(tokens, _count if args.count else _ids)
    return EXIT_OK


def pieces(tokens: m.Tokens, width: int | None) -> list[str]:
    """A row a token."""
    rows = [(token, logprobs.quoted(piece)) for token, piece in zip(tokens.tokens, tokens.pieces, strict=False)]
    return table(["ID", "TEXT"], rows, width)


def _ids(tokens: m.Tokens) -> list[str]:
    return [" ".join(map(str, tokens.tokens))]


def _count(tokens: m.Tokens) -> list[str]:
    return [str(len(tokens.tokens))]
