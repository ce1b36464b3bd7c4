"""The memory plan of a model that a server runs: what its light worker takes, and what the server takes here for it.

The server's share is the size of the model's file and a process to run it, where the server shares this device's
memory; what else it takes is told once it is loaded. Pure; called by `offers`.
Invariant: the parts add up to the total.
"""

from h2qd.core.plan import MemoryPlan, ModelShape

FORMATS = ("ollama", "openai")
"""Of models that servers run."""

_PROCESS_BYTES = 36 * 2**20
"""A worker that speaks HTTP and TLS, and what its answers in the making take."""

_RUNNER_BYTES = 64 * 2**20
"""What an Ollama's process for a model takes beside what /api/ps says: 37 to 62 MiB were seen, on a CPU."""


def remote_plan(shape: ModelShape, ctx: int) -> MemoryPlan:
    """The memory that a load of `shape` takes; the context does not show."""
    weights = max(0, shape.tensor_bytes)
    runner = _RUNNER_BYTES if weights else 0
    nothing = tuple((part, 0) for part in ("adapters", "repacked", "kv_cache", "recurrent", "output"))
    parts = (("weights", weights), *nothing, ("compute", runner), ("overhead", _PROCESS_BYTES))
    return MemoryPlan(ctx, parts, weights + runner + _PROCESS_BYTES)
