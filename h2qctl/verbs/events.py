"""`h2qctl events`."""

import argparse

from h2qctl import text
from h2qctl.client import Client
from h2qctl.output import Output
from h2qd.wire import messages as m
from h2qd.wire.codes import EXIT_OK

SUMMARY = "follow what happens, one line a notice"
EXAMPLES = ("h2qctl events", "h2qctl events --since 0 --no-follow", "h2qctl events --json | jq -c .chunk")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--since", type=int, metavar="N", help="begin after notice N, if it is still kept")
    parser.add_argument("--no-follow", action="store_true", help="end after the notices that are there")


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Show notices until the daemon ends them, or the user does."""
    out.streaming = True
    with client.events(args.since, follow=not args.no_follow) as notices:
        for notice in notices:
            if out.json:
                continue
            if notice.missed:
                out.note(f"{notice.missed} notices were missed before the next one")
            out.line(line(notice))
    return EXIT_OK


def line(notice: m.Notice) -> str:
    """A notice in words: time, number, event, model, and what else it carries."""
    words = [text.moment(notice.at_ms), str(notice.seq), text.safe(notice.event)]
    if notice.model:
        words.append(text.safe(notice.model))
    words += [f"{text.safe(key)}={text.safe(value)}" for key, value in notice.data.items()]
    return " ".join(words)
