"""Generated text on its way to the user, for `infer` and `chat`."""

from h2qctl import text
from h2qctl.flow import Stream, expect
from h2qctl.output import Output
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


def figures(answer: m.Answer) -> str:
    """One line of figures about an answer."""
    usage, timings = answer.usage, answer.timings
    return (
        f"{text.safe(answer.model)}: {usage.prompt_tokens} prompt tokens ({usage.cached_tokens} cached), "
        f"{usage.completion_tokens} new ({text.safe(answer.finish)}), first after "
        f"{text.duration(timings.first_token_ms)}, {timings.tokens_per_s:.1f} tokens/s, seed {answer.seed}"
    )
