"""The registry of error codes. Codes are the contract; texts are free to improve.

Each code says how a terminal exits, whether trying again unchanged can help, what it means and what
a person can do. PROTOCOL.md lists this table, and a test compares the two.
"""

from typing import NamedTuple


class Code(NamedTuple):
    """One kind of refusal or failure, as every client sees it."""

    name: str
    exit_status: int
    retryable: bool
    meaning: str
    hint: str


EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_LOADED = 3
EXIT_NO_SUCH_MODEL = 4
EXIT_REFUSED = 5
EXIT_UNREACHABLE = 69
EXIT_BUSY = 75
EXIT_NOT_PERMITTED = 77
EXIT_TIMEOUT = 124
EXIT_INTERRUPTED = 130

_TABLE = (
    # What was sent cannot be understood or is not allowed.
    Code("malformed", EXIT_USAGE, False, "the message is not an envelope and a body", "see PROTOCOL.md"),
    Code(
        "unsupported_version",
        EXIT_USAGE,
        False,
        "the envelope names a protocol version that this daemon does not speak",
        "use a client of the daemon's version: h2qctl version",
    ),
    Code("unknown_command", EXIT_USAGE, False, "the operation is not in the catalogue", "h2qctl --help"),
    Code(
        "invalid_request",
        EXIT_USAGE,
        False,
        "a field is missing, unknown, mistyped or out of range",
        "h2qctl VERB --help",
    ),
    Code(
        "too_large",
        EXIT_USAGE,
        False,
        "the body is larger than this command may carry",
        "send less; session.hello tells the limits",
    ),
    Code(
        "duplicate_id",
        EXIT_USAGE,
        False,
        "a request with this id is already in flight",
        "use a new id for each request",
    ),
    Code(
        "not_permitted",
        EXIT_NOT_PERMITTED,
        False,
        "this user may not use this command",
        "add the user to access: in the configuration",
    ),
    # Models and files.
    Code("no_such_model", EXIT_NO_SUCH_MODEL, False, "no model of this name is registered", "h2qctl models"),
    Code(
        "no_active_model",
        EXIT_NOT_LOADED,
        False,
        "no model was named and none is active",
        "h2qctl load MODEL",
    ),
    Code("not_loaded", EXIT_NOT_LOADED, False, "the model holds no memory", "h2qctl load MODEL"),
    Code(
        "name_taken",
        EXIT_REFUSED,
        False,
        "another file is registered under this name",
        "h2qctl import PATH --name OTHER",
    ),
    Code(
        "invalid_name",
        EXIT_USAGE,
        False,
        "the name is not a model name",
        "use a-z 0-9 . _ - : / and begin with a letter or digit",
    ),
    Code(
        "file_not_found",
        EXIT_FAILED,
        False,
        "the daemon cannot see this file",
        "give a path that the daemon's user can read",
    ),
    Code(
        "invalid_model_file",
        EXIT_FAILED,
        False,
        "the file is not a model this build can run",
        "fetch the file again; h2qctl import checks it",
    ),
    Code(
        "state_not_written",
        EXIT_FAILED,
        False,
        "the daemon cannot write its state folder: the disk is full, or read-only",
        "h2qctl doctor; then free some disk space",
    ),
    Code(
        "unsupported",
        EXIT_FAILED,
        False,
        "the model, or what runs it, cannot do this",
        "h2qctl show MODEL tells what it is",
    ),
    Code("in_use", EXIT_REFUSED, False, "the model holds memory or has requests", "h2qctl unload MODEL"),
    # Residency.
    Code(
        "no_fit",
        EXIT_REFUSED,
        False,
        "the model needs more memory than it could ever get here",
        "h2qctl plan MODEL --ctx N",
    ),
    Code(
        "pinned",
        EXIT_REFUSED,
        False,
        "the memory is held by a pinned model",
        "h2qctl unpin MODEL, or --force",
    ),
    Code(
        "memory_pressure",
        EXIT_BUSY,
        True,
        "the device is short of memory: nothing new is loaded, and in an emergency answers are given up",
        "try again later; h2qctl top",
    ),
    Code("load_failed", EXIT_FAILED, False, "the model could not be loaded", "h2qctl explain MODEL"),
    Code(
        "load_cancelled",
        EXIT_FAILED,
        False,
        "the load was given up because somebody unloaded the model",
        "h2qctl load MODEL",
    ),
    Code(
        "model_failed",
        EXIT_BUSY,
        True,
        "the model failed lately and waits before it is tried again",
        "h2qctl explain MODEL, then h2qctl load MODEL --reset",
    ),
    # Admission.
    Code("queue_full", EXIT_BUSY, True, "too many requests wait for this model", "try again later"),
    Code(
        "too_many_requests",
        EXIT_BUSY,
        True,
        "this client has too many requests in flight",
        "wait for replies before sending more",
    ),
    Code("shutting_down", EXIT_BUSY, True, "the daemon is stopping", "try again when it is back"),
    # Inference.
    Code(
        "context_overflow",
        EXIT_USAGE,
        False,
        "the prompt and the answer do not fit the context",
        "shorten the prompt, or load with a larger --ctx",
    ),
    Code(
        "invalid_grammar",
        EXIT_USAGE,
        False,
        "the grammar or JSON schema cannot be used",
        "check it against GBNF or JSON Schema",
    ),
    Code(
        "no_chat_template",
        EXIT_USAGE,
        False,
        "the model carries no chat template",
        "use infer with a plain prompt",
    ),
    Code(
        "invalid_messages",
        EXIT_USAGE,
        False,
        "the model's chat template refused the messages",
        "check roles and their order",
    ),
    Code(
        "generation_failed",
        EXIT_FAILED,
        True,
        "the engine failed while it generated",
        "try again; h2qctl explain MODEL",
    ),
    Code(
        "remote_failed",
        EXIT_FAILED,
        False,
        "the server that runs the model refused the request, or answered what cannot be understood",
        "h2qctl explain MODEL; then the server's own log",
    ),
    Code(
        "remote_unreachable",
        EXIT_BUSY,
        True,
        "the server that runs the model cannot be connected to, broke off, or was away lately and is left alone",
        "see that the server runs and that its url is right, then try again",
    ),
    # Outcomes of a request that was running.
    Code("cancelled", EXIT_INTERRUPTED, False, "the request was cancelled", "nothing to do"),
    Code("deadline_exceeded", EXIT_TIMEOUT, False, "the request's deadline passed", "raise --timeout"),
    Code("no_such_request", EXIT_FAILED, False, "no request of this name is in flight", "h2qctl ps"),
    Code(
        "worker_crashed",
        EXIT_FAILED,
        True,
        "the model's process died",
        "try again: the model is loaded anew; h2qctl explain MODEL",
    ),
    Code(
        "worker_oom",
        EXIT_FAILED,
        True,
        "the kernel killed the model's process: it outgrew its memory plan, or the machine ran out of memory",
        "load with a smaller context: h2qctl load MODEL --ctx N",
    ),
    Code(
        "worker_hung",
        EXIT_FAILED,
        True,
        "the model's process stopped answering and was killed",
        "try again: the model is loaded anew; h2qctl explain MODEL",
    ),
    Code("unloaded", EXIT_FAILED, True, "the model was unloaded by force while this request ran", "try again"),
    Code(
        "internal",
        EXIT_FAILED,
        False,
        "a defect of the daemon",
        "report it, with the log around this request",
    ),
    # Said by clients, never by the daemon.
    Code("unreachable", EXIT_UNREACHABLE, True, "no daemon answers on the socket", "h2qctl doctor"),
    Code("timeout", EXIT_TIMEOUT, True, "the daemon did not answer in time", "h2qctl status"),
)

CODES: dict[str, Code] = {code.name: code for code in _TABLE}
"""Every code by its name."""

CLIENT_ONLY = frozenset({"unreachable", "timeout"})
"""Codes that only client libraries use."""
