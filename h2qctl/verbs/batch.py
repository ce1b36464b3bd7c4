"""`h2qctl batch`: many prompts over several models, from a file to a file."""

import argparse
from importlib import import_module

from h2qctl.client import Client
from h2qctl.output import Output
from h2qctl.times import seconds

SUMMARY = "answer a file of prompts, loading each model once"
EXAMPLES = (
    "h2qctl batch prompts.jsonl -o answers.jsonl",
    "h2qctl batch prompts.jsonl --model gemma3 --dry-run",
    "h2qctl batch prompts.jsonl -o answers.jsonl --retry-failed",
)


_RETRIES_MAX = 1000


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "input",
        metavar="IN",
        help='a JSON object a line: {"prompt": ...}, {"messages": [...]} or {"texts": [...]}, with "id", "model" and '
        "the options of infer; or a line of OpenAI's batches",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="a JSON object a line, as they end; one that is there is gone on with",
    )
    parser.add_argument("--model", metavar="MODEL", help="for lines that name none; the active model when absent")
    parser.add_argument(
        "--concurrency", type=_some, metavar="N", help="lines at once (what the model answers at once)"
    )
    parser.add_argument(
        "--timeout-each", type=seconds, metavar="TIME", help="give a line up after this long, waiting included"
    )
    parser.add_argument(
        "--retries", type=_whole, default=8, metavar="N", help="tries more for a line that may do better later (8)"
    )
    parser.add_argument(
        "--wait", type=seconds, default=60.0, metavar="TIME", help="how long the daemon may be away (60)"
    )
    parser.add_argument("--retry-failed", action="store_true", help="run the lines again that failed before")
    parser.add_argument("--dry-run", action="store_true", help="only tell the models, their order and their lines")


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Do it, or go on with it; what it takes is imported only here. The exit status is 1 when any line has failed."""
    status: int = import_module("h2qctl.batch.errand").run(client, args, out)
    return status


def _whole(argument: str) -> int:
    number = int(argument)
    if not 0 <= number <= _RETRIES_MAX:
        raise argparse.ArgumentTypeError(f"cannot take {argument}: give 0 to {_RETRIES_MAX}")
    return number


def _some(argument: str) -> int:
    if not int(argument):
        raise argparse.ArgumentTypeError("cannot do 0 lines at once: give 1 or more")
    return _whole(argument)
