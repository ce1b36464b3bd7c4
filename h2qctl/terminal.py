"""One run of the terminal tool: parse, connect, run the verb, and turn how it ended into an exit status.

Signals end a run like Ctrl-C does: as an exception that passes through the request being waited for, which
thereby cancels it at the daemon; closing the client then waits, at most a second, for the daemon's word on it.
"""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn, TextIO

from h2qctl import parser
from h2qctl.client import Client
from h2qctl.errors import H2qError
from h2qctl.output import Output

EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE


def run(argv: list[str]) -> int:
    """Do what `argv` says; the exit status. Raises KeyboardInterrupt, and SystemExit on wrong usage or a signal."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    sys.stdout, sys.stderr = _speakable(sys.stdout), _speakable(sys.stderr)
    try:
        status = _verb(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        _mute()
        return EXIT_BROKEN_PIPE
    return status


def _verb(argv: list[str]) -> int:
    try:
        verb, args = parser.parse(argv)
    except H2qError as error:
        return Output(json=False, wide=False).error(error)
    out = Output(json=args.json, wide=getattr(args, "wide", "") == "wide")
    try:
        with Client(args.socket, timeout=args.timeout, on_body=out.take) as client:
            return verb.run(client, args, out)
    except H2qError as error:
        return out.error(error)


def _leave(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _speakable(stream: TextIO | None) -> TextIO:
    """`stream`, fit for any text: what its encoding lacks is escaped; one that is closed swallows what it gets."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123  # it lives as long as the process
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    return stream


def _mute() -> None:
    """Nobody reads any more: let what is still buffered go nowhere, instead of failing again at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
