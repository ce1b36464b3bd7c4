"""What goes beyond text is named, and images are known by their first bytes."""

import pytest

from h2qd.wire.abilities import beyond_text, image_type
from h2qd.wire.workers import Generate, Sampler, TokenizeText, Tool, ToolCall, Turn

PNG = b"\x89PNG\r\n\x1a\n...."


def order(*turns: Turn, **fields: object) -> Generate:
    return Generate(1, 4, Sampler(), turns=[Turn("user", "hi"), *turns], **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (order(Turn("user", "", images=[PNG])), "images"),
        (order(tools=[Tool("t", "", "{}")]), "tools"),
        (order(Turn("assistant", "", tool_calls=[ToolCall("1", "t", "{}")])), "tools"),
        (order(Turn("tool", "", tool_call_id="1")), "tools"),
        (order(Turn("tool", "", name="t")), "tools"),
        (order(think=False), "think"),
        (
            order(Turn("user", "", images=[PNG]), tools=[Tool("t", "", "{}")], think="low"),
            "images and tools and think",
        ),
    ],
)
def test_what_goes_beyond_text_is_named(asked: Generate, named: str) -> None:
    assert (beyond_text(asked) or "").startswith(f"cannot use {named} here: models of the types ollama and openai")


def test_text_is_not_beyond_itself() -> None:
    assert beyond_text(order(Turn("tool", "a role like any other"), tool_choice="none")) is None
    assert beyond_text(Generate(1, 4, Sampler(), prompt="hi")) is None
    assert beyond_text(TokenizeText(1, "hi")) is None


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF87a..", "image/gif"),
        (b"GIF89a..", "image/gif"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "image/webp"),
        (b"RIFF\x10\0\0\0WAVE", None),
        (b"<svg", None),
        (b"", None),
    ],
)
def test_images_are_known_by_their_first_bytes(data: bytes, kind: str | None) -> None:
    assert image_type(data) == kind
