"""The options that shape a model's context, as `load`, `switch` and `plan` take them.

The types of a KV cache are listed here, for completion and help; all other ranges are the daemon's to judge.
"""

import argparse
from typing import get_args

from h2qd.wire.messages import KvType


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--ctx", type=int, metavar="N", help="context in tokens")
    parser.add_argument("--kv-type", choices=get_args(KvType), help="what the KV cache is made of")


def described(ctx: int, kv_type: str) -> str:
    """A context in words; the KV cache's type is said when it is not the usual one. Not made safe to show."""
    return f"{ctx} tokens of context" + (f", KV cache {kv_type}" if kv_type != "f16" else "")
