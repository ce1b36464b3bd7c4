"""What not every model can do: what of an order goes beyond text, and what of a file is an image.

Images, tools and thinking pass through to servers that run models; engines on this device answer text with text.
Pure. Called by the supervisor before anything is unloaded for a request, by the engines that refuse such orders, and
by clients. Invariant: what cannot be done is refused by name, never left out.
"""

from h2qd.wire.workers import Generate, Task

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)


def beyond_text(order: Task) -> str | None:
    """Why a model on this device cannot work on `order`; None: it is about text alone."""
    if not isinstance(order, Generate):
        return None
    turns = order.turns or []
    asked = {
        "images": any(turn.images for turn in turns),
        "tools": bool(order.tools) or any(turn.tool_calls or turn.tool_call_id or turn.name for turn in turns),
        "think": order.think is not None,
    }
    wanted = [name for name, wants in asked.items() if wants]
    if not wanted:
        return None
    return (
        f"cannot use {' and '.join(wanted)} here: models of the types ollama and openai can, where their server does"
    )


def image_type(data: bytes) -> str | None:
    """The media type of an image, by its first bytes; None when it is none of those that servers take."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for signature, kind in _SIGNATURES if data.startswith(signature)), None)
