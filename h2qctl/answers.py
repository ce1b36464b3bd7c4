"""Generated text on its way to the user, for `infer` and `chat`."""

from h2qctl import logprobs, text
from h2qctl.flow import Stream, expect
from h2qctl.output import TABLE_WIDTH_MAX, Output
from h2qctl.progress import Progress
from h2qd.wire import messages as m


def show_stream(stream: Stream, progress: Progress, out: Output) -> m.Answer:
    """Print the pieces as they come, and a newline at the end if the text has none; the answer."""
    last = ""
    with stream:
        try:
            for piece in stream:
                progress.clear()
                if not out.json:
                    out.piece(piece)
                    last = piece or last
        finally:
            progress.clear()
            if last and not last.endswith("\n"):
                out.piece("\n")
    return expect(stream.answer, m.Answer)


def show_whole(answer: m.Answer, out: Output) -> None:
    """Print an answer that did not stream."""
    if out.json:
        out.reply(answer, lambda _: [])
    elif answer.text:
        out.piece(answer.text if answer.text.endswith("\n") else answer.text + "\n")


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
