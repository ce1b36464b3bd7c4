"""`h2qctl import`."""

import argparse

from h2qctl import text
from h2qctl.client import Client
from h2qctl.output import Output
from h2qctl.progress import Progress
from h2qd.wire import messages as m
from h2qd.wire.codes import EXIT_OK

SUMMARY = "register a model file where it lies"
EXAMPLES = ("h2qctl import ./gemma3-270m.gguf", "h2qctl import /models/q.gguf --name qwen3:8b")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--name", metavar="NAME", help="what to call it; by default after its file")


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Do it."""
    with Progress(out) as progress:
        outcome = client.import_model(args.path, args.name, on_progress=progress)
    out.reply(outcome, lines)
    return EXIT_OK


def lines(outcome: m.Imported) -> list[str]:
    """What was registered."""
    said = outcome.facts
    what = " ".join(filter(None, (said.architecture, said.quantization))) or said.format
    done = "imported" if outcome.changed else "unchanged"
    return [f"{text.safe(outcome.model)}: {done} ({text.safe(what)}, {text.safe(outcome.path)})"]
