"""The option that names a model's LoRA adapters: of `infer`, `chat`, `embed` and `score`.

Which ones there are, and how many may be named, is the daemon's to judge.
"""

import argparse

from h2qd.wire.messages import AdapterUse


def argument(parser: argparse.ArgumentParser, does: str) -> None:
    """Add it; `does` is what an adapter is used for, as in "answer with"."""
    parser.add_argument(
        "--adapter",
        action="append",
        type=adapter,
        metavar="NAME[=SCALE]",
        help=f"{does} one of the model's adapters, which show lists (=1); can be repeated",
    )


def adapter(written: str) -> AdapterUse:
    """`NAME` or `NAME=SCALE`. Raises ArgumentTypeError."""
    name, equals, scale = written.partition("=")
    try:
        if name:
            return AdapterUse(name, float(scale)) if equals else AdapterUse(name)
    except ValueError:
        pass  # told below, with the form that is wanted
    raise argparse.ArgumentTypeError(f"cannot read {written!r}: write NAME or NAME=NUMBER")
