"""Generated text on its way to the user, for `infer` and `chat`."""

from h2qctl import logprobs, text, tools
from h2qctl.flow import Stream, expect
from h2qctl.output import TABLE_WIDTH_MAX, Output
from h2qctl.progress import Progress
from h2qd.wire import messages as m


def show_stream(stream: Stream, progress: Progress, out: Output) -> m.Answer:
    """Print the pieces as they come, and a newline at the end if the text has none; then the calls. The answer."""
    page = _Page(out)
    with stream:
        try:
            for delta in stream.deltas():
                progress.clear()
                page.show(delta.text, delta.thinking)
        finally:
            progress.clear()
            page.end()
    answer = expect(stream.answer, m.Answer)
    _show_calls(answer, out)
    return answer


def show_whole(answer: m.Answer, out: Output) -> None:
    """Print an answer that did not stream."""
    if out.json:
        out.reply(answer, lambda _: [])
        return
    page = _Page(out)
    page.show(answer.text, answer.thinking)
    page.end()
    _show_calls(answer, out)


def _show_calls(answer: m.Answer, out: Output) -> None:
    """A line for each tool that the model wants called."""
    if not out.json:
        for call in answer.tool_calls:
            out.piece(tools.written(call) + "\n")


class _Page:
    """Where thoughts and text go, each on lines of its own. Nothing with `--json`, which shows the bodies."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._last = ""
        self._thought = ""

    def show(self, text: str, thinking: str) -> None:
        """Print more of either; of both, the thoughts came first."""
        out = self._out
        if out.json:
            return
        if thinking and out.dims:
            out.thought(thinking)
            self._thought = thinking
        if text:
            self._part()
            out.piece(text)
            self._last = text

    def end(self) -> None:
        """End the last line."""
        self._part()
        if self._last and not self._last.endswith("\n"):
            self._out.piece("\n")

    def _part(self) -> None:
        """End the thoughts, if there are any just before."""
        if self._thought:
            self._out.piece("\n" if self._thought.endswith("\n") else "\n\n")
            self._thought = ""


def show_figures(answer: m.Answer, out: Output, *, wanted: bool) -> None:
    """What was asked for beside the text, on stderr: how likely each token was, and with `wanted` the figures."""
    if answer.logprobs and not out.json:
        for line in logprobs.lines(answer.logprobs, TABLE_WIDTH_MAX if out.stderr.isatty() else None):
            out.note(line)
    if wanted:
        out.note(figures(answer))


def figures(answer: m.Answer) -> str:
    """One line of figures about an answer; what did not happen is not in it."""
    usage, timings = answer.usage, answer.timings
    prompt = f"{usage.cached_tokens} cached"
    if usage.truncated_tokens:
        prompt += f", {usage.truncated_tokens} left out"
    new = text.safe(answer.finish)
    if usage.drafted_tokens:
        new += f", {usage.accepted_tokens} of {usage.drafted_tokens} guessed"
    return (
        f"{text.safe(answer.model)}: {usage.prompt_tokens} prompt tokens ({prompt}), "
        f"{usage.completion_tokens} new ({new}), first after "
        f"{text.duration(timings.first_token_ms)}, {timings.tokens_per_s:.1f} tokens/s, seed {answer.seed}"
    )
