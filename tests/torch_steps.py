"""Drives the torch engine in tests: orders in, all that it says of each of them out."""

from typing import Any

from h2qd.wire.workers import Text
from h2qd.worker.torch.engine import TorchEngine


def run(engine: TorchEngine, *orders: Any) -> dict[int, list[Any]]:
    """Steps until the engine is idle; what was said, by request."""
    for order in orders:
        engine.submit(order)
    heard: dict[int, list[Any]] = {order.request: [] for order in orders}
    while engine.busy:
        for message in engine.step():
            heard[message.request].append(message)
    return heard


def text_of(messages: list[Any]) -> str:
    """The answer."""
    return "".join(message.text for message in messages if isinstance(message, Text))
