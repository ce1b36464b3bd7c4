"""The options of `chat` beyond text: images, tools, thinking. Declared once, and turned into what the client takes.

Files are read here: the daemon may see other ones. Their sizes are checked before anything is sent; what is in them,
as far as that is not obvious, is the daemon's to judge.
"""

import argparse
from collections.abc import Sequence
from typing import get_args

from h2qctl import sampling, tools
from h2qctl.asks import ChatOptions
from h2qctl.errors import H2qError
from h2qctl.stdin import first
from h2qd.wire.abilities import image_type
from h2qd.wire.limits import IMAGE_BYTES_MAX, IMAGES_MAX, PROMPT_BYTES_MAX
from h2qd.wire.messages import Think
from h2qd.wire.names import shown

_LEVELS: tuple[str, ...] = get_args(get_args(Think)[1])


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = parser.add_argument_group("beyond text, with models of servers")
    group.add_argument(
        "--image", action="append", metavar="FILE", help="show the model a PNG, JPEG, GIF or WebP; can be repeated"
    )
    group.add_argument("--tools", metavar="FILE", help="what the model may call: a JSON list of definitions")
    group.add_argument(
        "--tool-choice",
        metavar="CHOICE",
        help="auto, none, required, or the name of the tool that it must call (auto)",
    )
    group.add_argument(
        "--tool-result",
        action="append",
        type=tool_result,
        metavar="ID=FILE",
        help="what came of a call of the session's last answer (- reads stdin); can be repeated",
    )
    group.add_argument(
        "--think",
        nargs="?",
        const=True,
        default=None,
        type=level,
        metavar="LEVEL",
        help="have the model think first: low, medium, high, or as it likes",
    )
    group.add_argument("--no-think", dest="think", action="store_false", help="have it answer at once")


def options(args: argparse.Namespace) -> ChatOptions:
    """What the user chose, with all of `sampling`; what was not chosen is None. Raises `H2qError`."""
    return ChatOptions(
        **sampling.options(args),
        tools=None if args.tools is None else tools.read(args.tools),
        tool_choice=args.tool_choice,
        think=args.think,
    )


def images(paths: Sequence[str]) -> list[bytes]:
    """The images in these files. Raises `H2qError` (too_large, invalid_request) before any of them is sent."""
    if len(paths) > IMAGES_MAX:
        raise H2qError("too_large", f"cannot send {len(paths)} images: at most IMAGES_MAX ({IMAGES_MAX})")
    read = [_image(path) for path in paths]
    if (size := sum(map(len, read))) > PROMPT_BYTES_MAX:
        text = f"cannot send images of {size} bytes in all: a request has PROMPT_BYTES_MAX ({PROMPT_BYTES_MAX})"
        raise H2qError("too_large", text, "make them smaller, or send fewer")
    return read


def _image(path: str) -> bytes:
    data = first(path, IMAGE_BYTES_MAX + 1)
    if len(data) > IMAGE_BYTES_MAX:
        text = f"cannot send {shown(path)}: an image has at most IMAGE_BYTES_MAX ({IMAGE_BYTES_MAX}) bytes"
        raise H2qError("too_large", text, "make it smaller: models see it at a low resolution anyway")
    if image_type(data) is None:
        text = f"cannot send {shown(path)}: it is no PNG, JPEG, GIF or WebP"
        raise H2qError("invalid_request", text, "convert it first")
    return data


def level(argument: str) -> str:
    """How much to think. Raises ArgumentTypeError."""
    if argument in _LEVELS:
        return argument
    text = f"cannot think {argument!r}: write --think={'|'.join(_LEVELS)}, or --think behind all names"
    raise argparse.ArgumentTypeError(text)


def tool_result(argument: str) -> tuple[str, str]:
    """`ID=FILE` as a pair. Raises ArgumentTypeError."""
    call_id, equals, path = argument.partition("=")
    if not (call_id and equals and path):
        raise argparse.ArgumentTypeError(f"cannot read {argument!r}: write ID=FILE")
    return call_id, path
