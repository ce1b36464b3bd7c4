"""The client of h2qd: a Python library first, and the terminal tool over it.

    from h2qctl import Client

    with Client() as h2q:
        print(h2q.infer("Once upon a time", max_tokens=64).text)

`Client` blocks, `AsyncClient` awaits; both raise `H2qError`. Nothing is imported before its name is used,
so the terminal tool pays neither for asyncio nor for a verb that does not run. Of h2qd only `h2qd.wire` is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from h2qctl.aio import AsyncClient
    from h2qctl.client import Client
    from h2qctl.errors import H2qError

__all__ = ["AsyncClient", "Client", "H2qError"]

_HOMES = {"AsyncClient": "h2qctl.aio", "Client": "h2qctl.client", "H2qError": "h2qctl.errors"}


def __getattr__(name: str) -> Any:
    """The public name `name`, imported at its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'h2qctl' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
