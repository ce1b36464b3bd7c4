"""The one exception of this library: what the daemon refused, or why it could not be asked.

The code is the contract (`h2qd.wire.codes`); a daemon newer than this client may say codes unknown here,
so an unknown one is kept as it came and counts as a plain failure.
"""

from h2qd.wire.codes import CODES, EXIT_FAILED
from h2qd.wire.messages import ErrorReply


class H2qError(Exception):
    """A request that got no reply. `code` is for programs, `message`, `because` and `hint` are for people."""

    def __init__(self, code: str, message: str, hint: str = "", because: tuple[str, ...] = ()) -> None:
        known = CODES.get(code)
        default_hint = known.hint if known else ""
        self.reply = ErrorReply(
            code=code,
            message=message,
            hint=hint or default_hint,
            because=list(because),
            retryable=known.retryable if known else False,
        )
        super().__init__(message)

    @classmethod
    def of(cls, reply: ErrorReply) -> "H2qError":
        """The error that `reply` tells, with nothing of it lost."""
        error = cls(reply.code, reply.message)
        error.reply = reply
        return error

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    @property
    def code(self) -> str:
        """The stable name of what went wrong."""
        return self.reply.code

    @property
    def message(self) -> str:
        """What could not be done, in words."""
        return self.reply.message

    @property
    def hint(self) -> str:
        """The command that helps; may be empty."""
        return self.reply.hint

    @property
    def because(self) -> tuple[str, ...]:
        """Facts with numbers; may be empty."""
        return tuple(self.reply.because)

    @property
    def retryable(self) -> bool:
        """Whether the same request can succeed later."""
        return self.reply.retryable

    @property
    def retry_after_ms(self) -> int | None:
        """When trying again makes sense, where the daemon knows."""
        return self.reply.retry_after_ms

    @property
    def request(self) -> str | None:
        """The daemon's name for the request, as its log and `h2qctl ps` show it."""
        return self.reply.request

    @property
    def exit_status(self) -> int:
        """How a terminal tool exits on this error."""
        known = CODES.get(self.code)
        return known.exit_status if known else EXIT_FAILED
