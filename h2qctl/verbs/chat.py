"""`h2qctl chat`: a conversation on a terminal, or one message from a pipe."""

import argparse
import sys
from importlib import import_module

from h2qctl import answers, sampling
from h2qctl.asks import Options
from h2qctl.client import Client
from h2qctl.errors import H2qError
from h2qctl.flow import Stream
from h2qctl.output import Output
from h2qctl.progress import Progress
from h2qctl.stdin import whole
from h2qd.wire.codes import EXIT_OK
from h2qd.wire.messages import ChatMessage

SUMMARY = "talk with a model"
EXAMPLES = ("h2qctl chat", "h2qctl chat gemma3 --system 'Answer briefly.'", "echo 'Who are you?' | h2qctl chat")
_PROMPT = ">>> "
_HELP = "Ctrl-C stops an answer; /clear forgets the conversation; /exit or Ctrl-D leaves."


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("model", metavar="MODEL", nargs="?", help="the active model when absent")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told first")
    parser.add_argument("--no-stream", action="store_true", help="print an answer when it is whole (from a pipe)")
    parser.add_argument("-v", "--figures", action="store_true", help="tokens and times, on stderr")
    sampling.arguments(parser)


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Talk until the user leaves, or answer what stdin holds."""
    start = [ChatMessage("system", args.system)] if args.system else []
    options = sampling.options(args)
    if sys.stdin.isatty() and out.terminal and not out.json:
        _Talk(client, args, out, start, options).go()
        return EXIT_OK
    messages = [*start, ChatMessage("user", whole().rstrip("\n"))]
    with Progress(out) as progress:
        if args.no_stream:
            answer = client.chat(messages, args.model, on_progress=progress, **options)
            progress.clear()
            answers.show_whole(answer, out)
        else:
            out.streaming = True
            stream = client.chat(messages, args.model, stream=True, on_progress=progress, **options)
            answer = answers.show_stream(stream, progress, out)
    if args.figures:
        out.note(answers.figures(answer))
    return EXIT_OK


class _Talk:
    """A conversation on a terminal. An answer that was cut short stays in it as far as it came."""

    def __init__(
        self, client: Client, args: argparse.Namespace, out: Output, start: list[ChatMessage], options: Options
    ) -> None:
        self._client, self._args, self._out, self._options = client, args, out, options
        self._start = start
        self._messages = list(start)

    def go(self) -> None:
        """Read and answer until the user leaves."""
        import_module("readline")  # lines can be edited once it is loaded
        self._out.note(_HELP)
        while True:
            try:
                line = input(_PROMPT).strip()
            except EOFError:
                self._out.line("")
                return
            except KeyboardInterrupt:
                self._out.line("")
                continue
            if line == "/exit":
                return
            if line == "/clear":
                self._messages = list(self._start)
            elif line:
                self._answer(line)

    def _answer(self, line: str) -> None:
        """Say `line`; keep what was answered, or nothing of the exchange when nothing was."""
        self._messages.append(ChatMessage("user", line))
        stream: Stream | None = None
        try:
            with Progress(self._out) as progress:
                stream = self._client.chat(
                    self._messages, self._args.model, stream=True, on_progress=progress, **self._options
                )
                answer = answers.show_stream(stream, progress, self._out)
            if self._args.figures:
                self._out.note(answers.figures(answer))
        except KeyboardInterrupt:
            self._out.note("(stopped)")
        except H2qError as error:
            self._out.error(error)
        said = stream.text if stream else ""
        if said:
            self._messages.append(ChatMessage("assistant", said))
        else:
            self._messages.pop()
