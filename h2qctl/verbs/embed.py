"""`h2qctl embed`: more texts than one request takes are sent in several, one after the other."""

import argparse
from collections.abc import Iterator
from typing import TextIO

import msgspec

from h2qctl import adapters, text
from h2qctl.client import Client
from h2qctl.errors import H2qError
from h2qctl.output import Output
from h2qctl.progress import Progress
from h2qctl.stdin import contents, whole
from h2qd.wire import messages as m
from h2qd.wire.codes import EXIT_OK
from h2qd.wire.limits import PROMPT_BYTES_MAX, TEXTS_MAX
from h2qd.wire.names import shown

SUMMARY = "turn texts into vectors"
EXAMPLES = (
    'h2qctl embed "a small computer" "a large ship"',
    "h2qctl embed --model minilm --file lines.txt --output vectors.jsonl",
    "h2qctl embed --json - < text.txt | jq -c .vectors[0]",
)
_NUMBERS_SHOWN = 4
_REQUEST_CHARS_MAX = PROMPT_BYTES_MAX // 8
"""Characters in one request: at four bytes each, it stays well below what a request may carry."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="a text; - alone reads one from stdin")
    parser.add_argument("--file", metavar="FILE", help="one text a line; - is stdin, empty lines are left out")
    parser.add_argument("--model", metavar="MODEL", help="the active model when absent")
    parser.add_argument("--output", metavar="FILE", help="write the vectors there, one JSON object a line")
    parser.add_argument("--raw", action="store_true", help="do not bring the vectors to length 1")
    parser.add_argument("--truncate", action="store_true", help="leave out the end of a text that is too long")
    adapters.argument(parser, "make them with")


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Do it, request by request; each is shown, or written, as soon as it is answered."""
    wanted = _texts(args)
    if args.output is None:
        _answer(client, args, out, wanted, None)
        return EXIT_OK
    try:
        file = open(args.output, "w", encoding="utf-8")  # noqa: PTH123, SIM115  # closed below; pathlib costs 6 ms
    except (OSError, ValueError) as error:
        raise _unwritable(args.output, error) from None
    with file:
        _answer(client, args, out, wanted, file)
    return EXIT_OK


def _answer(client: Client, args: argparse.Namespace, out: Output, wanted: list[str], file: TextIO | None) -> None:
    for texts in portions(wanted):
        with Progress(out) as progress:
            reply = client.embed(
                texts,
                args.model,
                normalize=not args.raw,
                overflow="truncate" if args.truncate else None,
                adapters=args.adapter,
                on_progress=progress,
            )
        if file is not None:
            _write(file, args.output, texts, reply)
        out.reply(reply, _head if file is not None else lines)


def _write(file: TextIO, path: str, texts: list[str], reply: m.Embeddings) -> None:
    rows = ({"text": one, "vector": vector} for one, vector in zip(texts, reply.vectors, strict=True))
    try:
        file.writelines(msgspec.json.encode(row).decode() + "\n" for row in rows)
        file.flush()
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: str, error: Exception) -> H2qError:
    return H2qError("invalid_request", f"cannot write {shown(path)}: {shown(str(error))}", "name another file")


def portions(texts: list[str]) -> Iterator[list[str]]:
    """The texts in order, as many at a time as one request takes."""
    portion: list[str] = []
    chars = 0
    for one in texts:
        if portion and (len(portion) == TEXTS_MAX or chars + len(one) > _REQUEST_CHARS_MAX):
            yield portion
            portion, chars = [], 0
        portion.append(one)
        chars += len(one)
    if portion:
        yield portion


def lines(reply: m.Embeddings) -> Iterator[str]:
    """What the vectors are, then how each begins."""
    yield from _head(reply)
    for vector in reply.vectors:
        more = " …" if len(vector) > _NUMBERS_SHOWN else ""
        yield "  " + " ".join(f"{number:+.5f}" for number in vector[:_NUMBERS_SHOWN]) + more


def _head(reply: m.Embeddings) -> list[str]:
    cut = f", {reply.truncated_tokens} left out" if reply.truncated_tokens else ""
    what = f"{len(reply.vectors)} of {reply.dimensions} dimensions, pooling {text.safe(reply.pooling)}"
    return [f"{text.safe(reply.model)}: {what}, {reply.prompt_tokens} tokens{cut}"]


def _texts(args: argparse.Namespace) -> list[str]:
    if args.file is not None and args.texts:
        raise H2qError("invalid_request", "cannot take texts from arguments and from a file at once", "give one")
    if args.file is not None:
        found = [line for line in contents(args.file).split("\n") if line.strip()]
    else:
        found = [whole()] if args.texts == ["-"] else args.texts
    if not found:
        raise H2qError("invalid_request", "cannot turn nothing into vectors", 'h2qctl embed "a text"')
    return found
