"""`h2qctl pull`."""

import argparse

from h2qctl import text
from h2qctl.client import Client
from h2qctl.output import Output
from h2qctl.progress import Progress
from h2qd.wire import messages as m
from h2qd.wire.codes import EXIT_OK

SUMMARY = "have an Ollama server fetch a model"
EXAMPLES = ("h2qctl pull box/llama3.2:3b",)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the argument."""
    parser.add_argument("model", metavar="REMOTE/NAME[:TAG]", help="a remote of the configuration, and its own name")


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Do it; Ctrl-C ends the fetching, too."""
    with Progress(out) as progress:
        outcome = client.pull(args.model, on_progress=progress)
    out.reply(outcome, lines)
    return EXIT_OK


def lines(outcome: m.Pulled) -> list[str]:
    """What is there now, and what to call it."""
    said = outcome.facts
    what = " ".join(filter(None, (said.architecture, said.quantization))) or said.format
    return [f"{text.safe(outcome.model)}: pulled ({text.safe(what)}, {text.size(said.file_bytes)})"]
