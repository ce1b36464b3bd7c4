"""The memory plan of a model that a server runs: what its light worker takes, and what the server takes here for it.

The server's share is the size of the model's file, where the server shares this device's memory; what else it takes
is measured once it is loaded. Pure; called by `offers`. Invariant: the parts add up to the total.
"""

from h2qd.core.plan import MemoryPlan, ModelShape

FORMATS = ("ollama", "openai")
"""Of models that servers run."""

_PROCESS_BYTES = 36 * 2**20
"""A worker that speaks HTTP and TLS, and what its answers in the making take."""


def remote_plan(shape: ModelShape, ctx: int) -> MemoryPlan:
    """The memory that a load of `shape` takes; the context does not show."""
    weights = max(0, shape.tensor_bytes)
    nothing = tuple((part, 0) for part in ("adapters", "repacked", "kv_cache", "recurrent", "compute", "output"))
    return MemoryPlan(ctx, (("weights", weights), *nothing, ("overhead", _PROCESS_BYTES)), weights + _PROCESS_BYTES)
