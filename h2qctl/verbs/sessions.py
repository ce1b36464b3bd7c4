"""`h2qctl sessions`: the KV caches that the daemon keeps, and the turns that this tool keeps, by conversation."""

import argparse
import os
import time
from collections.abc import Iterator
from functools import partial

from h2qctl import text, turns
from h2qctl.client import Client
from h2qctl.errors import H2qError
from h2qctl.output import Output
from h2qctl.tables import table
from h2qd.wire import messages as m
from h2qd.wire.codes import EXIT_OK

SUMMARY = "conversations that are kept; `rm NAME` forgets one"
EXAMPLES = ("h2qctl sessions", "h2qctl sessions rm trip", "h2qctl sessions rm trip --model gemma3")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("action", metavar="rm", nargs="?", choices=["rm"], help="forget a conversation")
    parser.add_argument("session", metavar="NAME", nargs="?", help="which one")
    parser.add_argument(
        "--model", metavar="MODEL", help="forget only what this model holds of it; the turns stay (with rm)"
    )
    parser.add_argument("-o", dest="wide", choices=["wide"], help="more columns, nothing shortened")
    parser.add_argument("-q", "--quiet", action="store_true", help="only the names")


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """List them, or forget one."""
    if args.action is None:
        show = _names if args.quiet else partial(lines, wide=out.wide, width=out.width)
        out.reply(client.sessions(), lambda kept: show(kept, turns.found()))
        return EXIT_OK
    if args.session is None:
        raise H2qError("invalid_request", "cannot forget a session without its name", "h2qctl sessions rm NAME")
    removed = client.remove_session(turns.checked(args.session), args.model)
    here = turns.remove(args.session) if args.model is None else False
    out.reply(removed, partial(outcome, here=here))
    return EXIT_OK


def outcome(removed: m.SessionRemoved, *, here: bool) -> list[str]:
    """What is gone."""
    gone = []
    if removed.files:
        gone.append(f"the cache of {text.several(removed.files, 'model')} ({text.size(removed.freed_bytes)})")
    if here:
        gone.append("the turns")
    what = f"forgotten: {' and '.join(gone)}" if gone else "unchanged (nothing was kept)"
    return [f"{text.safe(removed.session)}: {what}"]


def lines(kept: m.Sessions, here: list[turns.Found], *, wide: bool, width: int | None) -> Iterator[str]:
    """A row for each model's cache, and for each conversation known only here; then the quota.

    An admin sees the caches of others too: the turns of a conversation of the same name here are not theirs.
    """
    own = {(one.session, os.getuid()): one for one in here}
    cached = {(row.session, row.uid) for row in kept.sessions}
    head = ["SESSION", "MODEL", "TOKENS", "SIZE", "AGE", "TURNS"] + (["UID"] if wide else [])
    rows = []
    for row in kept.sessions:
        cells: list[object] = [row.session, row.model, row.tokens, text.size(row.size_bytes)]
        cells += [_age(row.used_at_ms / 1000), _turns(own.get((row.session, row.uid)))]
        rows.append(cells + ([row.uid] if wide else []))
    for (session, uid), one in own.items():
        if (session, uid) not in cached:
            cells = [session, one.kept.model if one.kept else None, None, None, _age(one.used_at_s), _turns(one)]
            rows.append(cells + ([uid] if wide else []))
    yield from table(head, rows, width)
    yield ""
    yield f"{text.size(kept.used_bytes)} of {text.size(kept.quota_bytes)} used"


def _turns(one: turns.Found | None) -> object:
    if one is None:
        return None
    return one.kept.turns if one.kept else "damaged"


def _age(used_at_s: float) -> str:
    return text.duration(max(0.0, time.time() - used_at_s) * 1000)


def _names(kept: m.Sessions, here: list[turns.Found]) -> list[str]:
    names = [row.session for row in kept.sessions] + [one.session for one in here]
    return [text.safe(name) for name in dict.fromkeys(names)]
