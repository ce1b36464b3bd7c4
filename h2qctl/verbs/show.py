"""`h2qctl show`."""

import argparse

from h2qctl import text
from h2qctl.client import Client
from h2qctl.output import Output
from h2qctl.tables import facts
from h2qd.wire import messages as m
from h2qd.wire.codes import EXIT_OK

SUMMARY = "all that is known of a model"
EXAMPLES = ("h2qctl show gemma3", "h2qctl show gemma3 --json | jq -r .sha256")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the argument."""
    parser.add_argument("model", metavar="MODEL")


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Show it."""
    out.reply(client.show(args.model), lines)
    return EXIT_OK


def lines(show: m.Show) -> list[str]:
    """One fact a line."""
    row, said = show.model, show.facts
    return facts(
        [
            ("name", row.name),
            ("state", row.state),
            ("available", text.yes(row.available)),
            ("reason", row.reason),
            ("type", row.type),
            ("path", row.path),
            ("size", text.size(row.size_bytes)),
            ("sha256", show.sha256),
            ("imported", text.moment(show.imported_at_ms)),
            ("title", said.title),
            ("architecture", said.architecture),
            ("quantization", said.quantization),
            ("parameters", text.count(said.parameters)),
            ("layers", said.layers),
            ("embedding", said.embedding),
            ("vocabulary", said.vocabulary),
            ("context", f"{show.ctx} tokens, of at most {said.context_length}"),
            ("sliding window", f"{said.sliding_window} tokens" if said.sliding_window else None),
            ("chat template", text.yes(said.chat_template)),
            ("adapters", ", ".join(f"{row.name} ({text.size(row.size_bytes)})" for row in show.adapters)),
        ]
    )
