"""`h2qctl chat`: a conversation on a terminal, or one message given or from a pipe; `--session` goes on with one."""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from importlib import import_module

from h2qctl import abilities, answers, sampling, text, tools, turns
from h2qctl.asks import ChatOptions
from h2qctl.client import Client
from h2qctl.errors import H2qError
from h2qctl.flow import Stream
from h2qctl.output import Output
from h2qctl.progress import Progress
from h2qctl.stdin import contents, whole
from h2qd.wire.codes import EXIT_OK
from h2qd.wire.messages import Answer, ChatMessage, PastCall, ToolCall
from h2qd.wire.names import shown

SUMMARY = "talk with a model"
EXAMPLES = (
    "h2qctl chat",
    "h2qctl chat gemma3 --system 'Answer briefly.'",
    "h2qctl chat gemma3 'Who are you?'",
    "h2qctl chat --session trip",
    "echo 'Who are you?' | h2qctl chat",
    "echo 'What is on it?' | h2qctl chat box/gemma3:4b --image photo.jpg",
    "echo 'Is it raining in Rome?' | h2qctl chat lab/large --session rome --tools tools.json --think=low",
    "h2qctl chat --session rome --tools tools.json --tool-result call_1=rain.json",
)
_PROMPT = ">>> "
_HELP = "Ctrl-C stops an answer; /clear forgets the conversation; /exit or Ctrl-D leaves."


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("model", metavar="MODEL", nargs="?", help="the active model, or the session's, when absent")
    parser.add_argument("message", metavar="MESSAGE", nargs="?", help="what to say, once, instead of stdin")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told first")
    parser.add_argument("--no-stream", action="store_true", help="print an answer when it is whole (from a pipe)")
    parser.add_argument("-v", "--figures", action="store_true", help="tokens and times, on stderr")
    sampling.arguments(parser)
    abilities.arguments(parser)


def run(client: Client, args: argparse.Namespace, out: Output) -> int:
    """Talk until the user leaves, or answer the one message that is given, or that stdin holds."""
    options = abilities.options(args)
    if args.tool_result and args.session is None:
        why = "cannot tell what came of a call: without a session there is no answer that made it"
        raise H2qError("invalid_request", why, "h2qctl chat --session NAME --tools FILE --tool-result ID=FILE")
    if args.tool_result and args.image:
        raise H2qError("invalid_request", "cannot show an image with results of calls", "show it with a message")
    if args.tool_result and args.message is not None:
        raise H2qError("invalid_request", "cannot say something with results of calls", "say it after the answer")
    with contextlib.ExitStack() as leaving:
        if args.session is not None:
            leaving.enter_context(turns.held(args.session))
        talk = _Talk(client, args, out, options)
        if args.tool_result:
            talk.once(talk.outcomes(args.tool_result))
        elif args.message is not None:
            talk.once([talk.said(args.message)])
        elif sys.stdin.isatty() and out.terminal and not out.json:
            talk.go()
        else:
            talk.once([talk.said(whole().rstrip("\n"))])
    return EXIT_OK


class _Talk:
    """A conversation. An answer that was cut short stays in it as far as it came."""

    def __init__(self, client: Client, args: argparse.Namespace, out: Output, options: ChatOptions) -> None:
        self._client, self._args, self._out, self._options = client, args, out, options
        self._session: str | None = args.session
        self._model: str | None = args.model
        self._images = abilities.images(args.image or ())
        kept = turns.read(self._session) if self._session is not None else None
        before = kept.messages if kept is not None else []
        said = [message for message in before if message.role == "system"]
        self._start = [ChatMessage("system", args.system)] if args.system else said
        self._messages = self._start + [message for message in before if message.role != "system"]
        if kept is None:
            return
        self._model = self._model or kept.model
        if not out.json:
            with_whom = f" with {shown(self._model)}" if self._model else ""
            out.note(f"{self._session}: goes on after {text.several(kept.turns, 'turn')}{with_whom}")

    def said(self, line: str) -> ChatMessage:
        """What the user says; the images go with the first of it."""
        return ChatMessage("user", line, images=self._images)

    def outcomes(self, results: Sequence[tuple[str, str]]) -> list[ChatMessage]:
        """What came of the calls: a file each. Raises `H2qError` unless it is each call of the last answer, once."""
        calls = {call.id: call for call in _open_calls(self._messages)}
        if sorted(call_id for call_id, _ in results) != sorted(calls):
            waiting = ", ".join(map(shown, calls)) or "none"
            raise H2qError("invalid_request", "cannot go on without one result for each call", f"they are: {waiting}")
        return [tools.outcome(calls[call_id], contents(path)) for call_id, path in results]

    def once(self, messages: list[ChatMessage]) -> None:
        """Answer what was said."""
        self._messages += messages
        with Progress(self._out) as progress:
            if self._args.no_stream:
                answer = self._client.chat(self._messages, self._model, on_progress=progress, **self._options)
                progress.clear()
                answers.show_whole(answer, self._out)
            else:
                self._out.streaming = True
                answer = answers.show_stream(self._stream(progress), progress, self._out)
        if answer.text or answer.tool_calls:
            self._keep(answer.text, answer)
        answers.show_figures(answer, self._out, wanted=self._args.figures)

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
                self._save()
            elif line:
                self._answer(line)

    def _answer(self, line: str) -> None:
        """Say `line`; keep what was answered, or nothing of the exchange when nothing was."""
        self._messages.append(self.said(line))
        answer = self._exchange()
        if answer is None and self._messages[-1].role == "user":
            self._messages.pop()
            return
        self._images = []
        while answer is not None and answer.tool_calls:
            self._messages += [tools.outcome(call, self._outcome(call)) for call in answer.tool_calls]
            answer = self._exchange()

    def _exchange(self) -> Answer | None:
        """Have the conversation answered, and keep what came; the answer, if it came whole."""
        stream: Stream | None = None
        try:
            with Progress(self._out) as progress:
                stream = self._stream(progress)
                answer = answers.show_stream(stream, progress, self._out)
            answers.show_figures(answer, self._out, wanted=self._args.figures)
        except KeyboardInterrupt:
            self._out.note("(stopped)")
        except H2qError as error:
            self._out.error(error)
        if stream is None or not (stream.text or (stream.answer is not None and stream.answer.tool_calls)):
            return None
        self._keep(stream.text, stream.answer)
        return stream.answer

    @staticmethod
    def _outcome(call: ToolCall) -> str:
        """What the user says came of a call; leaving the line says that nothing did."""
        try:
            return input(f"{text.safe(call.name)} gives: ")
        except (EOFError, KeyboardInterrupt):
            return "The call was not made."

    def _stream(self, progress: Progress) -> Stream:
        return self._client.chat(self._messages, self._model, stream=True, on_progress=progress, **self._options)

    def _keep(self, said: str, answer: Answer | None) -> None:
        """Make what was said part of the conversation."""
        calls = [tools.past_call(call) for call in answer.tool_calls] if answer is not None else []
        self._messages.append(ChatMessage("assistant", said, tool_calls=calls))
        if self._session is not None and answer is not None:
            self._model = answer.model
        self._save()

    def _save(self) -> None:
        """Write a named conversation down. That it cannot be is told, and no reason to end the talk."""
        if self._session is None:
            return
        try:
            turns.write(self._session, self._model, self._messages)
        except H2qError as error:
            self._out.error(error)


def _open_calls(messages: Sequence[ChatMessage]) -> Sequence[PastCall]:
    """The calls that the last turn made."""
    return messages[-1].tool_calls if messages else ()
