"""`h2qctl swarm`."""

import argparse
from collections.abc import Iterator
from functools import partial
from typing import get_args

from h2qctl import sampling, text
from h2qctl.client import Client
from h2qctl.output import Output
from h2qctl.progress import Progress
from h2qctl.stdin import whole
from h2qctl.tables import table
from h2qctl.times import seconds
from h2qd.wire import messages as m
from h2qd.wire.codes import EXIT_OK

SUMMARY = "ask several models, and make one answer of theirs"
EXAMPLES = (
    'h2qctl swarm --models gemma3,tiny,smol --max-tokens 8 "The capital of France is"',
    'h2qctl swarm --models gemma3,tiny --chat --judge gemma3 "Why is the sky blue?"',
    "h2qctl swarm --models gemma3,tiny,smol --embedder minilm --deadline 30 - < question.txt",
    'h2qctl swarm --models gemma3,tiny --method none --json "1 2 3" | jq -r .answers[].text',
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("prompt", metavar="PROMPT", help="what all are asked; - reads it from stdin")
    parser.add_argument("--models", metavar="A,B,...", required=True, type=names, help="who is asked, at most 16")
    parser.add_argument(
        "--method",
        choices=get_args(m.Method),
        help="how one answer is made (majority; judge or medoid where --judge or --embedder name a model)",
    )
    parser.add_argument("--judge", metavar="MODEL", help="the model that chooses an answer")
    parser.add_argument("--embedder", metavar="MODEL", help="the model by whose vectors the middle answer is found")
    parser.add_argument(
        "--deadline", metavar="TIME", type=seconds, help="what each model has from its turn on, loading included"
    )
    parser.add_argument("--chat", action="store_true", help="ask through each model's own chat template")
    sampling.decoding_arguments(parser)


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Do it: whoever fails has a row that says why, and only all of them fail the verb."""
    prompt = whole() if args.prompt == "-" else args.prompt
    with Progress(out) as progress:
        reply = client.swarm(
            [m.ChatMessage("user", prompt)] if args.chat else prompt,
            args.models,
            method=args.method,
            judge=args.judge,
            embedder=args.embedder,
            deadline_s=args.deadline,
            on_progress=progress,
            **sampling.decoding(args),
        )
    out.reply(reply, partial(lines, width=out.width, terminal=out.terminal))
    return EXIT_OK


def names(argument: str) -> list[str]:
    """Names between commas."""
    return [name for name in map(str.strip, argument.split(",")) if name]


def lines(reply: m.SwarmAnswer, *, width: int | None, terminal: bool) -> Iterator[str]:
    """A row for each model, then what they agree on, and that answer whole."""
    head = ["MODEL", "STATE", "TOKENS", "TIME", "ANSWER"]
    yield from table(head, [_row(row) for row in reply.answers], width)
    agreed = reply.consensus
    if agreed is None:
        return
    yield ""
    said = f"{agreed.votes} of {sum(row.ok for row in reply.answers)} say so, agreement {agreed.agreement:.0%}"
    yield f"{agreed.method}: {', '.join(map(text.safe, agreed.models))} ({said})"
    if agreed.note:
        yield text.safe(agreed.note)
    yield ""
    whole_text = agreed.text.strip("\n")
    yield text.answer(whole_text) if terminal else whole_text


def _row(row: m.SwarmRow) -> list[object]:
    name = f"{row.model} (for {row.instead_of})" if row.instead_of else row.model
    if row.error is not None:
        return [name, row.error.code, None, None, row.error.message]
    tokens = row.usage.completion_tokens if row.usage is not None else None
    spent = text.duration(row.timings.total_ms) if row.timings is not None else None
    return [name, row.finish, tokens, spent, " ".join(row.text.split())]
