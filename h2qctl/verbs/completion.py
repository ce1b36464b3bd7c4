"""`h2qctl completion`."""

import argparse
from importlib import import_module

from h2qctl import parser as command_line
from h2qctl.client import Client
from h2qctl.output import Output
from h2qd.wire.codes import EXIT_OK

SUMMARY = "print a completion script for a shell"
EXAMPLES = (
    "h2qctl completion bash > ~/.local/share/bash-completion/completions/h2qctl",
    "h2qctl completion zsh > ~/.zfunc/_h2qctl",
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the argument."""
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh"])


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Print it; the library that writes it is imported only here."""
    del client
    out.line(import_module("shtab").complete(command_line.tree(), args.shell))
    return EXIT_OK
