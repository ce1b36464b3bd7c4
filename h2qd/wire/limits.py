"""Every bound that the protocol puts on a peer, in one place. Units last in the names.

A limit that clients need to know is told to them in the reply to `session.hello`.
"""

PROTOCOL_VERSION = 1

ENVELOPE_BYTES_MAX = 1024
"""The first frame of a message: version, id, operation, deadline."""

CONTROL_BYTES_MAX = 64 * 1024
"""The body of every command that carries no prompt."""

PROMPT_BYTES_MAX = 4 * 1024 * 1024
"""The body of a command that carries a prompt or messages."""

FRAME_BYTES_MAX = PROMPT_BYTES_MAX
"""What the socket accepts for one frame; larger ones cut the connection."""

FRAMES_MAX = 2
"""A message is an envelope and a body."""

ID_MAX = 2**53 - 1
"""Request ids, and every other integer, fit a double exactly, so that any language can hold them."""

NAME_CHARS_MAX = 128
PATH_CHARS_MAX = 4096
DEADLINE_MS_MAX = 24 * 3600 * 1000

REQUESTS_PER_CLIENT_MAX = 256
"""Requests that one connection may have in flight (pipelining)."""

CHUNK_WINDOW_DEFAULT = 64
CHUNK_WINDOW_MAX = 4096
"""Chunks that may be under way to a client without a `stream.credit` from it."""

HEARTBEAT_MS = 1000
"""The longest silence about a request in flight: a `progress` message ends it where nothing else does."""

TOKENS_MAX = 1_000_000
STOPS_MAX = 16
STOP_CHARS_MAX = 256
MESSAGES_MAX = 2048
LOGIT_BIAS_MAX = 1024
GRAMMAR_CHARS_MAX = 64 * 1024
LAYERS_MAX = 1024
"""Layers of a model, and so the length of every per-layer list."""

LOGPROBS_MAX = 20
"""Of the likeliest tokens, told for each token of an answer."""

SWARM_MODELS_MAX = 16
"""Models that one request asks the same."""

TEXTS_MAX = 64
"""Texts that one request turns into vectors."""

TOKENIZE_CHARS_MAX = 256 * 1024
"""A text that is only tokenized, in characters, and a list of tokens that becomes text."""

IMAGES_MAX = 16
"""Images of one request, over all its messages."""

IMAGE_BYTES_MAX = 3 * 1024 * 1024
"""One image; all of them go into one body with the rest, so `PROMPT_BYTES_MAX` bounds them together."""

TOOLS_MAX = 128
TOOL_NAME_CHARS_MAX = 128
TOOL_TEXT_CHARS_MAX = 8192
"""What a tool says of itself."""

TOOL_CALLS_MAX = 64
"""Tools that one answer calls."""

TOOL_ARGUMENTS_CHARS_MAX = 256 * 1024
"""The arguments of a call, and of all calls of an answer together."""

ADAPTERS_USED_MAX = 4
"""LoRA adapters that one request is answered with."""

SLOTS_MAX = 64
"""Sequences that one context serves at a time."""

LABEL_CHARS_MAX = 4096
"""What a model file may say of itself in one string: its title, architecture, quantization."""

NOTICES_KEPT = 512
"""Notices that a late subscriber can still ask for."""

WORKER_FRAME_BYTES_MAX = 8 * 1024 * 1024
"""One message between the supervisor and a worker: a prompt plus its envelope fits."""
