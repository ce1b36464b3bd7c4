"""One run of `h2qctl batch`: opens input and output, asks what is resident, has the lines done, and sums up.

Ctrl-C cancels what is under way and leaves what came; a second one does not wait for the daemon's word on that.
"""

import argparse
import asyncio
import os
from collections.abc import Iterator

import msgspec

from h2qctl import text
from h2qctl.aio import AsyncClient
from h2qctl.batch import jobs
from h2qctl.batch.board import Board
from h2qctl.batch.jobs import BadLineError
from h2qctl.batch.journal import Journal, Past, past
from h2qctl.batch.runner import Runner, Settings
from h2qctl.batch.source import Group, Source
from h2qctl.client import Client
from h2qctl.errors import H2qError
from h2qctl.output import Output
from h2qctl.tables import table
from h2qd.wire.codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_NO_SUCH_MODEL, EXIT_OK


class Summary(msgspec.Struct, frozen=True):
    """How a batch stands: `ok` and `failed` of all `lines`. `new` ended in this run, in so many `tokens`."""

    lines: int
    ok: int
    failed: int
    new: int
    tokens: int
    total_ms: float
    output: str


class Order(msgspec.Struct, frozen=True):
    """What a run would do for a model, in its place. `state` is None for a model that the daemon does not know."""

    model: str
    lines: int
    unreadable: int
    state: str | None


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Do what the user asked for. Raises `H2qError` when the run cannot begin, or not go on."""
    with Source(args.input, args.model) as source:
        if args.dry_run:
            return _dry(client, args, out, source)
        if args.output is None:
            raise H2qError("invalid_request", "cannot write the answers: no output is named", "add -o OUT.jsonl")
        if os.path.exists(args.output) and os.path.samefile(args.input, args.output):  # noqa: PTH110, PTH121
            raise H2qError("invalid_request", "cannot write the answers over the questions", "name another output")
        with Journal(args.output, source, anew=args.retry_failed) as journal:
            board = Board(out, source.lines, journal.past.ok + journal.past.failed)
            try:
                asyncio.run(_go(client.socket, args, source, journal, board))
            except KeyboardInterrupt:
                board.close()
                out.note(f"stopped; {board.done} of {source.lines} lines are done, and the same command goes on")
                return EXIT_INTERRUPTED
            finally:
                board.close()
            failed = journal.past.failed + board.failed
            new = board.done - journal.past.ok - journal.past.failed
            total_ms = board.elapsed_s * 1000
            summary = Summary(source.lines, source.lines - failed, failed, new, board.tokens, total_ms, args.output)
    if out.json:
        out.line(msgspec.json.encode(summary).decode())
    else:
        for line in lines(summary):
            out.line(line)
    return EXIT_FAILED if summary.failed else EXIT_OK


def lines(summary: Summary) -> Iterator[str]:
    """How it went, and how to go on when not all went well."""
    yield f"{text.several(summary.lines, 'line')}: {summary.ok} ok, {summary.failed} failed"
    seconds = max(summary.total_ms / 1000, 1e-3)
    speed = f"{summary.tokens / seconds:.1f} tokens/s"
    yield f"{summary.new} of them in this run, in {text.duration(summary.total_ms)}, {speed}"
    if summary.failed:
        yield "the failed ones again: the same command with --retry-failed"


async def _go(socket: str, args: argparse.Namespace, source: Source, journal: Journal, board: Board) -> None:
    settings = Settings(args.concurrency, args.timeout_each, args.retries, args.wait)
    if journal.past.ok + journal.past.failed == source.lines:
        return
    wanted = (number for number in source.numbers() if not journal.past.done(number))
    try:
        async with asyncio.timeout(args.timeout), AsyncClient(socket) as client:
            status = await client.status()
            groups = source.groups(wanted, status.active, status.resident)
            await Runner(client, source, journal, settings, board).run(groups)
    except TimeoutError:
        message = f"cannot finish within {args.timeout:g} s: {board.done} of {source.lines} lines are done"
        raise H2qError("timeout", message, "the same command goes on") from None


def _dry(client: Client, args: argparse.Namespace, out: Output, source: Source) -> int:
    """Tell what would be done, in which order. Nothing is written."""
    before = past(args.output, source) if args.output is not None else Past(bytearray(source.last), 0, 0, 0)
    again = args.retry_failed
    done = before.answered if again else before.done
    wanted = (number for number in source.numbers() if not done(number))
    status = client.status()
    states = {row.name: row.state for row in client.models().models}
    order = [_order(group, source, states) for group in source.groups(wanted, status.active, status.resident)]
    if out.json:
        out.line(msgspec.json.encode({"order": order, "done": before.ok + (0 if again else before.failed)}).decode())
    else:
        rows = [(one.model, one.lines, one.unreadable, one.state or "unknown") for one in order]
        for line in table(["MODEL", "LINES", "BAD", "STATE"], rows, out.width):
            out.line(line)
    return EXIT_OK if all(one.state or not one.model for one in order) else EXIT_NO_SUCH_MODEL


def _order(group: Group, source: Source, states: dict[str, str]) -> Order:
    bad = 0
    for number in group.lines:
        try:
            jobs.parse(source.read(number))
        except BadLineError:
            bad += 1
    return Order(group.model or "", len(group.lines), bad, states.get(group.model or ""))
