"""`h2qctl top`: a live screen on a terminal, one table anywhere else.

On the live screen q and Ctrl-C are both ways to leave, with exit status 0, as in top(1); a reading that is
followed by `--watch` elsewhere is a stream like `events`, and interrupted (130) by Ctrl-C.
"""

import argparse
import os
import time
from collections.abc import Iterator
from functools import partial
from importlib import import_module

from h2qctl import text
from h2qctl.client import Client
from h2qctl.output import Output
from h2qctl.tables import facts, table
from h2qctl.times import seconds
from h2qctl.verbs.ps import requests
from h2qctl.verbs.status import moving
from h2qd.wire import messages as m
from h2qd.wire.codes import EXIT_OK

SUMMARY = "memory by layer and worker, pressure and speed, live"
EXAMPLES = ("h2qctl top", "h2qctl top --once", "h2qctl top --json --watch -n 5 | jq -c .level")
_INTERVAL_S = 1.0
_INTERVAL_S_MIN = 0.1
_INTERVAL_S_MAX = 3600.0
_COLOURS = {"warn": "\x1b[33m", "critical": "\x1b[1;31m", "emergency": "\x1b[1;7;31m"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    often = parser.add_mutually_exclusive_group()
    often.add_argument("--once", action="store_true", help="one table, also on a terminal")
    often.add_argument(
        "-f", "--watch", action="store_true", help="go on, also off a terminal; as JSON, an object a line"
    )
    parser.add_argument(
        "-n", "--interval", type=_interval, default=_INTERVAL_S, metavar="TIME", help="time between readings (1)"
    )


def _interval(argument: str) -> float:
    """The time between readings. Raises ArgumentTypeError."""
    number = seconds(argument)
    if not _INTERVAL_S_MIN <= number <= _INTERVAL_S_MAX:
        raise argparse.ArgumentTypeError(
            f"cannot read every {argument}: give seconds from {_INTERVAL_S_MIN:g} to {_INTERVAL_S_MAX:g}"
        )
    return number


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Show it once, or until the user leaves."""
    if out.terminal and not (args.once or out.json) and os.environ.get("TERM", "dumb") != "dumb":
        return _live(client, args.interval, out)
    shown = partial(_painted, out=out, width=out.width)
    out.reply(client.top(), shown)
    while args.watch:
        time.sleep(args.interval)
        top = client.top()
        if not out.json:
            out.line("")
        out.reply(top, shown)
    return EXIT_OK


def _live(client: Client, interval_s: float, out: Output) -> int:
    """Draw until q or Ctrl-C. A daemon that cannot be reached is told on an untouched terminal."""
    top = client.top()
    screen = import_module("h2qctl.screen").Screen(out)
    try:
        screen.open()
        while screen.show(lambda width: _painted(top, out=out, width=width), interval_s):  # noqa: B023  # used at once
            top = client.top()
    except KeyboardInterrupt:
        pass  # here it is a key like q
    finally:
        screen.close()
    return EXIT_OK


def _painted(top: m.Top, *, out: Output, width: int | None) -> list[str]:
    level, *others = lines(top, width=width)
    return [out.paint(level, _COLOURS.get(top.level, "")), *others]


def lines(top: m.Top, *, width: int | None) -> Iterator[str]:
    """The level first, then the figures of the device, the layers of the budget, the workers, and what runs."""
    pairs: list[tuple[str, object]] = [
        ("level", f"{top.level} for {text.duration(top.since_ms)}, {top.used_share:.1f}% used"),
        ("memory", f"{text.size(top.available_bytes)} of {text.size(top.total_bytes)} available"),
        ("stalls", _stalls(top)),
        ("swap", f"{text.size(top.swap_used_bytes)} used, {text.size(round(top.swap_in_bytes_per_s))}/s read back"),
        ("speed", f"{top.tokens_per_s:.1f} tokens/s, {top.running} running, {top.waiting} waiting"),
    ]
    if top.temperature_c is not None:
        pairs.append(("heat", f"{top.temperature_c:.1f} C"))
    for device in top.devices:
        used = f"{text.size(device.used_bytes)} of {text.size(device.total_bytes)} used"
        pairs.append(("device", f"{device.name}: {used}"))
    if top.switch is not None:
        pairs.append(("switch", moving(top.switch)))
    yield from facts(pairs)
    yield ""
    yield from _layers(top.layers, width)
    yield ""
    yield from _workers(top.workers, width)
    if top.requests:
        yield ""
        yield from requests(top.requests, wide=False, width=width)


def _stalls(top: m.Top) -> str | None:
    if top.some_stall_share is None and top.full_stall_share is None:
        return None
    some, full = (
        text.NONE if share is None else f"{share:.1f}%" for share in (top.some_stall_share, top.full_stall_share)
    )
    return f"some tasks {some}, all tasks {full} of the last 10 s"


def _layers(layers: list[m.MemoryLayer], width: int | None) -> list[str]:
    rows = [
        (
            layer.layer,
            text.size(layer.limit_bytes),
            text.size(layer.committed_bytes),
            text.size(layer.reserved_bytes),
            text.size(layer.free_bytes),
            text.size(layer.over_bytes),
        )
        for layer in layers
    ]
    return table(["LAYER", "LIMIT", "COMMITTED", "RESERVED", "FREE", "OVER"], rows, width)


def _workers(workers: list[m.WorkerRow], width: int | None) -> list[str]:
    rows = [
        (
            worker.model,
            worker.state,
            text.size(worker.held_bytes),
            text.size(worker.planned_bytes),
            text.size(worker.limit_bytes),
            worker.running,
            worker.waiting,
            f"{worker.tokens_per_s:.1f}",
        )
        for worker in workers
    ]
    return table(["MODEL", "STATE", "HELD", "PLANNED", "LIMIT", "RUN", "WAIT", "TOKENS/S"], rows, width)
