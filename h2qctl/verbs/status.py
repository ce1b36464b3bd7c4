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
        ("level", memory.level),
        ("memory", f"{text.size(memory.held_bytes)} held, {text.size(memory.available_bytes)} available"),
        ("limit", _limit(memory)),
        ("supervisor", text.size(memory.supervisor_bytes)),
        *((f"layer {layer.layer}", _layer(layer)) for layer in memory.layers),
    ]
    if status.switch is not None:
        pairs.append(("switch", moving(status.switch)))
    pairs += [("degraded", reason) for reason in status.degraded]
    return facts(pairs)


def moving(switch: m.SwitchView) -> str:
    """A switch under way, in words. Not made safe to show."""
    going = ", ".join(switch.unloading) or "nothing"
    return f"to {switch.target}: {switch.phase} for {text.duration(switch.age_ms)}, unloading {going}"


def _limit(memory: m.MemoryView) -> str:
    """What models may have, and of what; a daemon that does not tell the whole budget says 0."""
    limit = text.size(memory.limit_bytes)
    return f"{limit} for models, of {text.size(memory.max_bytes)} in all" if memory.max_bytes else limit


def _layer(layer: m.MemoryLayer) -> str:
    held = f"{text.size(layer.committed_bytes)} of {text.size(layer.limit_bytes)} committed"
    over = f", {text.size(layer.over_bytes)} over" if layer.over_bytes else ""
    return f"{held}, {text.size(layer.reserved_bytes)} reserved, {text.size(layer.free_bytes)} free{over}"
