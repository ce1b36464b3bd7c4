"""The verbs, and what of the command line belongs to which. Only the verb that runs is imported.

The words before the verb are the tool's own options; a parser made of the verb's file reads the rest, with the
same options accepted there. The tree of all verbs (`tree`) is built for completion scripts alone.
"""

import argparse
import sys
from importlib import import_module
from typing import Protocol

from h2qctl.client import Client
from h2qctl.errors import H2qError
from h2qctl.output import Output
from h2qctl.times import seconds
from h2qd import __version__
from h2qd.wire.codes import EXIT_OK, EXIT_USAGE
from h2qd.wire.names import shown

GROUPS = (
    ("Look", ("status", "ps", "top", "models", "show", "explain", "plan", "events")),
    ("Models", ("load", "unload", "switch", "pin", "unpin", "import", "pull", "rm")),
    ("Text", ("infer", "chat", "swarm", "sessions", "embed", "score", "tokenize", "detokenize", "batch", "cancel")),
    ("Daemon", ("doctor", "config", "version")),
    ("Tool", ("completion", "help")),
)
VERBS = tuple(verb for _, verbs in GROUPS for verb in verbs)
ALIASES = {"ls": "models", "list": "models"}
_FILES = {"import": "import_"}
_WITH_VALUE = ("--socket", "--timeout")


class Verb(Protocol):
    """What a file in `verbs` holds."""

    SUMMARY: str
    EXAMPLES: tuple[str, ...]

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the verb's arguments."""

    def run(self, client: Client, args: argparse.Namespace, out: Output) -> int:
        """Do it; the exit status. Raises `H2qError`."""


def parse(argv: list[str]) -> tuple[Verb, argparse.Namespace]:
    """The verb to run and its arguments. Raises `H2qError` (unknown_command), and SystemExit after help."""
    at = 0
    while at < len(argv) and argv[at].startswith("-"):
        at += 2 if argv[at] in _WITH_VALUE else 1
    args = argparse.Namespace(socket=None, timeout=None, json=False)
    _own_parser().parse_args(argv[:at], args)
    if at >= len(argv):
        sys.stderr.write(overview())
        raise SystemExit(EXIT_USAGE)
    name = known(argv[at])
    verb = load(name)
    return verb, verb_parser(name, verb).parse_intermixed_args(argv[at + 1 :], args)


def known(word: str) -> str:
    """The verb that `word` names. Raises `H2qError` (unknown_command) with the nearest one."""
    name = ALIASES.get(word, word)
    if name in VERBS:
        return name
    near = import_module("difflib").get_close_matches(word, (*VERBS, *ALIASES), 1)
    hint = f"h2qctl {near[0]}" if near else "h2qctl --help"
    raise H2qError("unknown_command", f"cannot do {shown(word)!r}: there is no such verb", hint)


def load(name: str) -> Verb:
    """The file of the verb `name`."""
    verb: Verb = import_module(f"h2qctl.verbs.{_FILES.get(name, name)}")
    return verb


def verb_parser(name: str, verb: Verb) -> argparse.ArgumentParser:
    """The parser of one verb's words."""
    parser = argparse.ArgumentParser(
        prog=f"h2qctl {name}",
        description=verb.SUMMARY,
        epilog="examples:\n" + "\n".join(f"  {example}" for example in verb.EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _fill(parser, verb)
    return parser


def tree() -> argparse.ArgumentParser:
    """All verbs in one parser, as completion scripts need it."""
    parser = _own_parser()
    verbs = parser.add_subparsers(dest="verb")
    for word in (*VERBS, *ALIASES):
        verb = load(ALIASES.get(word, word))
        _fill(verbs.add_parser(word, help=verb.SUMMARY), verb)
    return parser


def overview() -> str:
    """What `h2qctl --help` says."""
    lines = ["usage: h2qctl [--socket PATH] [--timeout TIME] [--json] VERB ...", ""]
    for title, names in GROUPS:
        lines.append(f"{title}:")
        lines.extend(f"  {name:<12}{load(name).SUMMARY}" for name in names)
        lines.append("")
    lines.append("h2qctl help VERB tells more, with examples.")
    return "\n".join(lines) + "\n"


def _fill(parser: argparse.ArgumentParser, verb: Verb) -> None:
    verb.arguments(parser)
    _add_common(parser.add_argument_group("common"))


def _own_parser() -> argparse.ArgumentParser:
    """What may stand before the verb."""
    parser = argparse.ArgumentParser(prog="h2qctl", add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action=_Overview, nargs=0, help="show this text")
    parser.add_argument("--version", action="version", version=f"h2qctl {__version__}", help="this tool's version")
    _add_common(parser)
    return parser


def _add_common(parser: argparse._ActionsContainer) -> None:
    """The options of every verb. They have no defaults here: those given before the verb must stand."""
    parser.add_argument("--socket", metavar="PATH", default=argparse.SUPPRESS, help="the daemon's socket")
    parser.add_argument(
        "--timeout",
        metavar="TIME",
        type=seconds,
        default=argparse.SUPPRESS,
        help="give up after so long: 90, 90s, 2m",
    )
    parser.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="the daemon's reply as JSON, untouched"
    )


class _Overview(argparse.Action):
    """Show all verbs with their summaries, which are read from their files only now."""

    def __call__(self, *_: object) -> None:
        sys.stdout.write(overview())
        raise SystemExit(EXIT_OK)
