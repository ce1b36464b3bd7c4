"""`h2qctl status`."""

import argparse

from h2qctl import text
from h2qctl.client import Client
from h2qctl.output import Output
from h2qctl.tables import facts
from h2qd.wire import messages as m
from h2qd.wire.codes import EXIT_OK

SUMMARY = "the daemon at a glance"
EXAMPLES = ("h2qctl status", "h2qctl status --json | jq .memory.available_bytes")


def arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""
    del parser


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Show it."""
    del args
    out.reply(client.status(), lines)
    return EXIT_OK


def lines(status: m.Status) -> list[str]:
    """One fact a line."""
    memory = status.memory
    pairs: list[tuple[str, object]] = [
        ("daemon", f"{status.phase}, version {status.version}, pid {status.pid}"),
        ("up", text.duration(status.uptime_ms)),
        ("policy", status.policy),
        ("active", status.active),
        ("resident", ", ".join(status.resident)),
        ("models", status.models),
        ("requests", f"{status.running} running, {status.waiting} waiting"),
        ("memory", f"{text.size(memory.held_bytes)} held, {text.size(memory.available_bytes)} available"),
        ("limit", text.size(memory.limit_bytes)),
        ("supervisor", text.size(memory.supervisor_bytes)),
    ]
    if status.switch is not None:
        moving = status.switch
        going = ", ".join(moving.unloading) or "nothing"
        done = f"to {moving.target}: {moving.phase} for {text.duration(moving.age_ms)}, unloading {going}"
        pairs.append(("switch", done))
    return facts(pairs)
