"""The command catalogue: the one list of what clients may ask.

From it come the access checks, the handlers' completeness, h2qctl's help and the list in PROTOCOL.md.
"""

from enum import IntEnum
from typing import NamedTuple

from h2qd.wire import messages as m
from h2qd.wire.limits import CONTROL_BYTES_MAX, PROMPT_BYTES_MAX


class Access(IntEnum):
    """What a user may do; each level includes the ones below it."""

    READ = 1
    USE = 2
    ADMIN = 3


class Command(NamedTuple):
    """One operation: who may use it, what it takes, what it answers. `reply` None: it is never answered."""

    op: str
    access: Access
    request: type[m.Ask]
    reply: type[m.Say] | None
    summary: str
    chunk: type[m.Say] | None = None
    bytes_max: int = CONTROL_BYTES_MAX


_COMMANDS = (
    Command("session.hello", Access.READ, m.Hello, m.HelloReply, "agree on version, capabilities and limits"),
    Command("daemon.status", Access.READ, m.Empty, m.Status, "the daemon at a glance"),
    Command("daemon.version", Access.READ, m.Empty, m.Version, "versions of the daemon and its libraries"),
    Command(
        "daemon.config",
        Access.READ,
        m.Empty,
        m.Config,
        "the configuration in force and where each value comes from",
    ),
    Command("daemon.doctor", Access.READ, m.Empty, m.Doctor, "what the daemon finds wrong with its surroundings"),
    Command("model.ps", Access.READ, m.Empty, m.Ps, "which models hold memory, and which requests run"),
    Command("daemon.top", Access.READ, m.Empty, m.Top, "memory by layer and worker, pressure, speed"),
    Command("model.list", Access.READ, m.Empty, m.Models, "all registered models"),
    Command("model.show", Access.READ, m.OfModel, m.Show, "all that is known of a model"),
    Command("model.explain", Access.READ, m.OfModel, m.Explain, "the story of a model's transitions"),
    Command("model.plan", Access.READ, m.PlanAsk, m.Plan, "the memory a load would take"),
    Command("model.import", Access.ADMIN, m.Import, m.Imported, "register a model file in place"),
    Command("model.pull", Access.ADMIN, m.Pull, m.Pulled, "have a server fetch a model"),
    Command("model.remove", Access.ADMIN, m.OfModel, m.Removed, "forget a model; its file stays"),
    Command("model.load", Access.ADMIN, m.Load, m.Residency, "make a model resident"),
    Command("model.unload", Access.ADMIN, m.Unload, m.Unloaded, "take a model's memory back"),
    Command(
        "model.switch",
        Access.ADMIN,
        m.Load,
        m.Residency,
        "make a model the active one, unloading what must go",
    ),
    Command("model.pin", Access.ADMIN, m.OfModel, m.Pinned, "keep a model from being evicted"),
    Command("model.unpin", Access.ADMIN, m.OfModel, m.Pinned, "let a model be evicted again"),
    Command("infer.text", Access.USE, m.Infer, m.Answer, "continue a prompt", m.Delta, PROMPT_BYTES_MAX),
    Command("infer.chat", Access.USE, m.Chat, m.Answer, "answer a conversation", m.Delta, PROMPT_BYTES_MAX),
    Command(
        "infer.swarm",
        Access.USE,
        m.Swarm,
        m.SwarmAnswer,
        "ask several models, and make one answer of theirs",
        None,
        PROMPT_BYTES_MAX,
    ),
    Command("infer.embed", Access.USE, m.Embed, m.Embeddings, "turn texts into vectors", None, PROMPT_BYTES_MAX),
    Command("infer.score", Access.USE, m.Score, m.Scored, "how likely a text is", None, PROMPT_BYTES_MAX),
    Command("text.tokenize", Access.USE, m.Tokenize, m.Tokens, "the tokens of a text", None, PROMPT_BYTES_MAX),
    Command("text.detokenize", Access.USE, m.Detokenize, m.Detokenized, "the text of tokens", None, PROMPT_BYTES_MAX),
    Command(
        "sessions.list", Access.USE, m.Empty, m.Sessions, "conversations kept on disk: one's own; an admin's: all"
    ),
    Command("sessions.remove", Access.USE, m.OfSession, m.SessionRemoved, "forget a conversation"),
    Command("request.cancel", Access.READ, m.Cancel, m.Cancelled, "cancel a request in flight"),
    Command("stream.credit", Access.READ, m.Credit, None, "allow more chunks of a stream"),
    Command("events.watch", Access.READ, m.Events, m.EventsEnd, "follow what happens", m.Notice),
)

CATALOGUE: dict[str, Command] = {command.op: command for command in _COMMANDS}
"""Every command by its operation."""
