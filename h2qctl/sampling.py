"""The options of `infer`, `chat` and `swarm`: declared once, and turned into what the client takes.

Ranges are the daemon's to judge. A grammar or schema is read from a file here: the daemon may see other files.
"""

import argparse
from pathlib import Path
from typing import get_args

from h2qctl import adapters
from h2qctl.asks import Decoding, Options
from h2qctl.errors import H2qError
from h2qd.wire.messages import Overflow, Priority
from h2qd.wire.names import shown

_NUMBERS: tuple[tuple[str, type, str, str], ...] = (
    ("--max-tokens", int, "N", "stop after this many tokens (512)"),
    ("--temperature", float, "T", "0 is greedy (0.8)"),
    ("--top-k", int, "N", "keep the N likeliest tokens; 0 keeps all (40)"),
    ("--top-p", float, "P", "keep the likeliest tokens up to this sum of probability (0.95)"),
    ("--min-p", float, "P", "drop tokens below this share of the likeliest one's probability (0.05)"),
    ("--repeat-penalty", float, "X", "make tokens that came lately less likely; 1 is off (1)"),
    ("--repeat-last-n", int, "N", "how many tokens count as lately (64)"),
    ("--seed", int, "N", "choose the same tokens again (drawn, and told with -v)"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of one model's answer."""
    adapters.argument(parser, "answer with")
    parser.add_argument(
        "--session",
        metavar="NAME",
        type=session,
        help="go on from what is kept of this conversation, and keep it again",
    )
    parser.add_argument(
        "--logprobs",
        type=int,
        metavar="N",
        help="how likely each token was, and the N likeliest ones; a table on stderr, after the text",
    )
    decoding_arguments(parser)


def decoding_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of how any answer is made."""
    parser.add_argument(
        "--priority",
        choices=get_args(Priority),
        help="who goes first of those who wait, and is given up last when memory runs out (normal)",
    )
    parser.add_argument(
        "--overflow",
        choices=get_args(Overflow),
        help="a text that outgrows the context is refused, loses its middle, or lets its oldest tokens go (refuse)",
    )
    parser.add_argument(
        "--no-speculate",
        dest="speculate",
        action="store_false",
        default=None,
        help="do not guess tokens from the text so far",
    )
    group = parser.add_argument_group("sampling")
    for option, kind, letter, meaning in _NUMBERS:
        group.add_argument(option, type=kind, metavar=letter, help=meaning)
    group.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; can be repeated")
    group.add_argument("--ignore-eos", action="store_true", default=None, help="go on past the end of text")
    group.add_argument(
        "--logit-bias",
        action="append",
        type=bias,
        metavar="ID=X",
        help="add X to the logit of token number ID; can be repeated",
    )
    group.add_argument("--grammar", metavar="FILE", help="allow only text that this GBNF grammar describes")
    group.add_argument("--json-schema", metavar="FILE", help="allow only JSON that follows this schema")


def options(args: argparse.Namespace) -> Options:
    """What the user chose; what was not chosen is None. Raises `H2qError` when a file cannot be read."""
    return Options(**decoding(args), window=None, session=args.session, logprobs=args.logprobs, adapters=args.adapter)


def decoding(args: argparse.Namespace) -> Decoding:
    """What the user chose of how any answer is made. Raises `H2qError` when a file cannot be read."""
    return Decoding(
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repeat_penalty=args.repeat_penalty,
        repeat_last_n=args.repeat_last_n,
        seed=args.seed,
        stop=args.stop,
        ignore_eos=args.ignore_eos,
        logit_bias=dict(args.logit_bias) if args.logit_bias else None,
        grammar=_contents(args.grammar),
        json_schema=_contents(args.json_schema),
        priority=args.priority,
        overflow=args.overflow,
        speculate=args.speculate,
    )


def session(argument: str) -> str:
    """A session's name. Raises ArgumentTypeError."""
    plain = argument.isascii() and argument.replace("-", "").replace(".", "").replace("_", "").isalnum()
    if not plain or argument[0] in "-._" or len(argument) > 64:
        raise argparse.ArgumentTypeError(f"cannot use {argument!r}: at most 64 letters, digits, and . _ - inside")
    return argument


def bias(argument: str) -> tuple[str, float]:
    """`ID=X` as a pair. Raises ArgumentTypeError."""
    token, equals, value = argument.rpartition("=")
    try:
        if equals and token:
            return token, float(value)
    except ValueError:
        pass  # told below, with the form that is wanted
    raise argparse.ArgumentTypeError(f"cannot read {argument!r}: write ID=NUMBER")


def _contents(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise H2qError("invalid_request", f"cannot read {shown(path)}: {shown(str(error))}", "name a file") from None
