"""`h2qctl detokenize`."""

import argparse

from h2qctl.client import Client
from h2qctl.errors import H2qError
from h2qctl.output import Output
from h2qctl.stdin import whole
from h2qd.wire.codes import EXIT_OK
from h2qd.wire.names import shown

SUMMARY = "the text of tokens"
EXAMPLES = ("h2qctl detokenize 14014 3324 496 990", "h2qctl detokenize - < tokens.txt")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("tokens", metavar="ID", nargs="+", help="a token's number; - alone reads them from stdin")
    parser.add_argument("--model", metavar="MODEL", help="the active model when absent")


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Do it."""
    words = whole().replace(",", " ").split() if args.tokens == ["-"] else args.tokens
    reply = client.detokenize([_number(word) for word in words], args.model)
    if out.json:
        out.reply(reply, lambda _: [])
    else:
        out.piece(reply.text if reply.text.endswith("\n") else reply.text + "\n")
    return EXIT_OK


def _number(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) <= 10):
        raise H2qError("invalid_request", f"cannot read {shown(word)!r}: a token is a number", "h2qctl tokenize TEXT")
    return int(word)
