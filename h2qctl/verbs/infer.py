"""`h2qctl infer`."""

import argparse

from h2qctl import answers, sampling
from h2qctl.client import Client
from h2qctl.output import Output
from h2qctl.progress import Progress
from h2qctl.stdin import whole
from h2qd.wire.codes import EXIT_OK

SUMMARY = "continue a prompt"
EXAMPLES = (
    'h2qctl infer "Once upon a time" --max-tokens 64',
    'h2qctl infer gemma3 "The capital of France is" --temperature 0 -v',
    "h2qctl infer - --priority low < prompt.txt",
    'h2qctl infer "Dear diary," --session diary --logprobs 3',
    'h2qctl infer --json "1 2 3" | jq -rj ".chunk.text // empty"',
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("model", metavar="MODEL", nargs="?", help="the active model when absent")
    parser.add_argument("prompt", metavar="PROMPT", help="the text to continue; - reads it from stdin")
    parser.add_argument("--no-stream", action="store_true", help="print the answer when it is whole")
    parser.add_argument("-v", "--figures", action="store_true", help="tokens and times, on stderr")
    sampling.arguments(parser)


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Do it."""
    prompt = whole() if args.prompt == "-" else args.prompt
    options = sampling.options(args)
    with Progress(out) as progress:
        if args.no_stream:
            answer = client.infer(prompt, args.model, on_progress=progress, **options)
            progress.clear()
            answers.show_whole(answer, out)
        else:
            out.streaming = True
            stream = client.stream(prompt, args.model, on_progress=progress, **options)
            answer = answers.show_stream(stream, progress, out)
    answers.show_figures(answer, out, wanted=args.figures)
    return EXIT_OK
