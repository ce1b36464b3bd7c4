"""The keys: every section a frozen struct, every key with its default, its kind and its meaning.

This is the one list of keys. The reader walks it, `reference` prints it, and tests compare configs/edge.yaml
and configs/README.md with it. Attributes carry their unit (`patience_s`, `safety_buffer_bytes`); the key in
the file is the same name without it (`patience`). It reads nothing and knows no file.
"""

from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec

from h2qd.config.kinds import (
    AdapterList,
    Choice,
    Duration,
    FilePath,
    Flag,
    Kind,
    Mode,
    ModelName,
    NameList,
    NameMap,
    Percent,
    Share,
    Size,
    TextList,
    Url,
    UserList,
    Users,
    Whole,
    Word,
)
from h2qd.config.units import Amount
from h2qd.wire.catalogue import Access
from h2qd.wire.limits import DEADLINE_MS_MAX, SLOTS_MAX
from h2qd.wire.messages import ConfigValue

SOCKET_PATH_BYTES_MAX = 100
"""`sun_path` has 108 bytes; the rest is for suffixes of sockets beside the first."""

MODELS_MAX = 256
"""Entries of `models`."""

ADAPTERS_MAX = 8
"""Adapters of a model."""

REMOTES_MAX = 32
"""Entries of `remotes`."""

_SHORTEST_S = 0.01
_DAY_S = 86400.0
_CTX = Whole(64, 10_000_000)
_KV_TYPE = Choice(("f16", "q8_0", "q4_0"))


class Key(msgspec.Struct, frozen=True):
    """What is known of a key besides its type. `default`: the default in words, where it is computed."""

    meaning: str
    kind: Kind
    default: str = ""


def _file_name(attribute: str) -> str:
    """The key in the file: the attribute without its unit."""
    return attribute.removesuffix("_s").removesuffix("_bytes")


class Section(msgspec.Struct, frozen=True, rename=_file_name):
    """Base of all sections."""


class Socket(Section, frozen=True):
    """The control socket."""

    path: Annotated[
        str,
        Key(
            "where clients connect",
            FilePath(SOCKET_PATH_BYTES_MAX),
            "$RUNTIME_DIRECTORY/h2qd.sock under systemd; /run/h2qd/h2qd.sock for root; "
            "$XDG_RUNTIME_DIR/h2qd/h2qd.sock; else /tmp/h2qd-UID/h2qd.sock",
        ),
    ]
    mode: Annotated[int, Key("permission bits of the socket file", Mode())] = 0o660


class AccessLists(Section, frozen=True):
    """Who may do what; each list includes what the next one may do."""

    admin: Annotated[
        Users, Key("may load, unload and register models; root and the daemon's own user always may", UserList())
    ] = Users()
    use: Annotated[Users, Key("may use the models that are there", UserList())] = Users()
    read: Annotated[Users, Key("may look, and nothing else", UserList())] = Users()

    def level(self, uid: int, own_uid: int) -> Access | None:
        """What the user `uid` may do with a daemon that runs as `own_uid`; None: not even connect."""
        if uid in (0, own_uid) or self.admin.allows(uid):
            return Access.ADMIN
        if self.use.allows(uid):
            return Access.USE
        return Access.READ if self.read.allows(uid) else None


class Log(Section, frozen=True):
    """What is logged, to standard error."""

    level: Annotated[
        str, Key("the least severe lines that are written", Choice(("debug", "info", "warning", "error")))
    ] = "info"
    format: Annotated[
        str, Key("JSON lines or words; auto: words on a terminal, else JSON", Choice(("auto", "json", "console")))
    ] = "auto"


class Residency(Section, frozen=True):
    """Which models hold memory."""

    policy: Annotated[
        str,
        Key(
            "exclusive: one model at a time, a switch unloads every other; "
            "budget: as many as memory.model_limit holds",
            Choice(("exclusive", "budget")),
        ),
    ] = "exclusive"
    patience_s: Annotated[
        float,
        Key("how long a waiting switch lets new work start on the model it must drain", Duration(0, 600.0)),
    ] = 2.0
    restore: Annotated[bool, Key("load the models that were resident last when the daemon starts", Flag())] = True
    park_s: Annotated[
        float,
        Key(
            "how long a model that had to go keeps its process without its context, for a fast return; 0: not",
            Duration(0, _DAY_S),
        ),
    ] = 0.0


class Requests(Section, frozen=True):
    """Admission of requests."""

    queue_max: Annotated[int, Key("requests that may wait for one model", Whole(1, 10_000))] = 64
    deadline_s: Annotated[
        float,
        Key("time an inference request has when it names none", Duration(_SHORTEST_S, DEADLINE_MS_MAX / 1000)),
    ] = 600.0


class Worker(Section, frozen=True):
    """The processes that hold models."""

    start_timeout_s: Annotated[float, Key("time a new worker has until it answers", Duration(_SHORTEST_S, 600.0))] = (
        10.0
    )
    load_timeout_s: Annotated[float, Key("time a load may take", Duration(_SHORTEST_S, _DAY_S))] = 600.0
    stop_grace_s: Annotated[
        float,
        Key("time between the steps of stopping a worker: ask, SIGTERM, SIGKILL", Duration(_SHORTEST_S, 600.0)),
    ] = 5.0
    stall_timeout_s: Annotated[
        float, Key("a busy engine that makes no step for this long is hung", Duration(_SHORTEST_S, 3600.0))
    ] = 60.0
    cancel_grace_s: Annotated[
        float, Key("time a cancelled request has to end before its worker is killed", Duration(_SHORTEST_S, 600.0))
    ] = 5.0
    threads: Annotated[
        int, Key("threads of an engine; 0: as many as find a core that nothing else keeps busy", Whole(0, 1024))
    ] = 0
    nice: Annotated[int, Key("scheduling priority; larger yields more", Whole(-20, 19))] = 0
    oom_score_adj: Annotated[
        int, Key("how readily the kernel kills a worker when memory runs out", Whole(0, 1000))
    ] = 900
    memory_margin: Annotated[
        Amount,
        Key(
            "memory beyond its plan that a worker may take before the kernel kills it, never less than 64MiB; "
            "a share is of the plan",
            Share(2**20),
        ),
    ] = Amount(percent=25)
    ping_interval_s: Annotated[
        float, Key("how often a worker is asked whether it still moves", Duration(_SHORTEST_S, 60.0))
    ] = 2.0


class Shutdown(Section, frozen=True):
    """The end of the daemon."""

    drain_s: Annotated[float, Key("time running requests have to end after SIGTERM", Duration(0, 3600.0))] = 20.0


class Sessions(Section, frozen=True):
    """Conversations whose KV cache outlives their model's stay in memory."""

    disk_quota_bytes: Annotated[
        int,
        Key("for all of them on disk, below state_dir; the least recently used goes first; 0: none", Size(2**50)),
    ] = 2 * 2**30
    save_timeout_s: Annotated[
        float, Key("time a model that goes has to write its sessions", Duration(_SHORTEST_S, 3600.0))
    ] = 30.0


class Failures(Section, frozen=True):
    """Models that fail."""

    backoff_first_s: Annotated[
        float, Key("wait after the first failure; it doubles with each", Duration(_SHORTEST_S, 3600.0))
    ] = 0.5
    backoff_max_s: Annotated[float, Key("the longest such wait", Duration(_SHORTEST_S, 3600.0))] = 30.0
    breaker_count: Annotated[
        int, Key("failures within the window after which a model is given up", Whole(1, 100))
    ] = 5
    breaker_window_s: Annotated[float, Key("the window in which failures count", Duration(_SHORTEST_S, _DAY_S))] = (
        60.0
    )


class Memory(Section, frozen=True):
    """The budget: what of the device's memory is for what."""

    max: Annotated[
        Amount,
        Key("for everything here; a share is of what the machine and the daemon's own cgroup allow", Share(2**20)),
    ] = Amount(percent=100)
    model_limit: Annotated[
        Amount,
        Key("for all models together, never more than the rest leaves; a share is of memory.max", Share(2**20)),
    ] = Amount(percent=80)
    working_bytes: Annotated[
        int, Key("for the daemon itself, its idle processes and checks of model files", Size(2**40))
    ] = 128 * 2**20
    safety_buffer_bytes: Annotated[int, Key("memory that must stay free beyond every plan", Size(2**40))] = (
        256 * 2**20
    )
    strict: Annotated[
        bool,
        Key(
            "refuse to start or load when the device has not got what the budget promises; else go on, degraded",
            Flag(),
        ),
    ] = False
    device: Annotated[
        str, Key("where models compute; auto: on a GPU where the build can use one", Choice(("auto", "cpu")))
    ] = "auto"


class Guard(Section, frozen=True):
    """The watch over the device's memory. Levels go by the share that is in use."""

    warn: Annotated[float, Key("caches are trimmed, parked models go", Percent(10, 99))] = 0.80
    critical: Annotated[float, Key("no model is loaded, idle models go", Percent(10, 99))] = 0.90
    emergency: Annotated[
        float, Key("pinned models go, workers over their plan are ended, then answers are cut off", Percent(10, 100))
    ] = 0.96
    leave_gap: Annotated[float, Key("a level is left this far below where it is entered", Percent(1, 50))] = 0.05
    dwell_s: Annotated[float, Key("and only after readings were below it for this long", Duration(0, 3600.0))] = 5.0
    calm_s: Annotated[float, Key("time between two evictions, unless the pressure persists", Duration(0, _DAY_S))] = (
        60.0
    )


class ModelDefaults(Section, frozen=True):
    """What holds for models that say nothing else."""

    ctx: Annotated[int, Key("context in tokens, bounded by what the model was made for", _CTX)] = 4096
    slots: Annotated[
        int,
        Key(
            "requests that a model answers at once; each has a context of its own, in memory too", Whole(1, SLOTS_MAX)
        ),
    ] = 1
    kv_type: Annotated[
        str, Key("what the KV cache is made of: 16 bits an element, or blocks of 8 or 4 bits", _KV_TYPE)
    ] = "f16"
    degrade: Annotated[
        bool,
        Key("give a load that does not fit less: a KV cache of fewer bits, a smaller context, a variant", Flag()),
    ] = True
    min_ctx: Annotated[int, Key("the smallest context that a load may be given so, in tokens", _CTX)] = 2048
    ttl_s: Annotated[
        float, Key("a model that is idle for so long is unloaded; 0: never", Duration(0, 30 * _DAY_S))
    ] = 0.0


class Model(Section, frozen=True):
    """One model of the map `models`: one of this device, or REMOTE/NAME, one of a server, which has no `path`."""

    path: Annotated[
        str,
        Key(
            "the model file or folder; a relative path starts at this file's folder",
            FilePath(),
            "required; of a server's model there is none",
        ),
    ] = ""
    ctx: Annotated[
        int | None, Key("context in tokens, also what an Ollama is told for a model of its own", _CTX, "model.ctx")
    ] = None
    kv_type: Annotated[str | None, Key("what the KV cache is made of", _KV_TYPE, "model.kv_type")] = None
    degrade: Annotated[bool | None, Key("give less rather than refuse", Flag(), "model.degrade")] = None
    min_ctx: Annotated[int | None, Key("the smallest context given so", _CTX, "model.min_ctx")] = None
    ttl_s: Annotated[
        float | None, Key("unload after so long without work", Duration(0, 30 * _DAY_S), "model.ttl")
    ] = None
    priority: Annotated[int, Key("models of a lower priority are evicted first", Whole(-100, 100))] = 0
    variants: Annotated[
        tuple[str, ...], Key("models that may answer in its place where it does not fit, the best first", NameList())
    ] = ()
    fallback: Annotated[
        tuple[str, ...],
        Key("models that answer where it is refused, fails or has failed too often, in their order", NameList()),
    ] = ()
    fallback_after_s: Annotated[
        float | None,
        Key(
            "time until an answer begins, a load included, after which the next of `fallback` is asked instead",
            Duration(0.1, 3600.0),
            "none",
        ),
    ] = None
    backend: Annotated[
        str | None,
        Key(
            "the engine; fake is a scripted one for tests",
            Choice(("llama", "torch", "fake")),
            "torch for a folder, else llama",
        ),
    ] = None
    quantize: Annotated[
        str,
        Key(
            "what torch turns weights into as it loads them; none: as they are in the files",
            Choice(("none", "float32", "bfloat16", "int8", "int4")),
        ),
    ] = "none"
    draft: Annotated[
        str,
        Key(
            "a small registered model (GGUF) of the same vocabulary that guesses what this one says, where that is "
            "faster; it is loaded with the model, if there is room",
            ModelName(),
            "none",
        ),
    ] = ""
    adapters: Annotated[
        tuple[tuple[str, str], ...],
        Key(
            "LoRA adapters (GGUF) that requests can name, at most 8; they are loaded with the model; "
            "a relative path starts at this file's folder",
            AdapterList(),
        ),
    ] = ()


class Remote(Section, frozen=True):
    """One server of the map `remotes`."""

    type: Annotated[str, Key("what it speaks", Choice(("ollama", "openai")), "required")]
    url: Annotated[str, Key("where it is; for openai with the version, as in https://host/v1", Url(), "required")]
    key_env: Annotated[str, Key("the environment variable of the daemon that holds the key", Word(), "none")] = ""
    key_credential: Annotated[str, Key("the systemd credential that holds the key", Word(), "none")] = ""
    models: Annotated[
        tuple[str, ...], Key("names of its models that are offered here; empty: all that it lists", TextList())
    ] = ()
    aliases: Annotated[
        tuple[tuple[str, str], ...],
        Key("what some of its models are called here, instead of by their own names: ALIAS: NAME", NameMap(), "none"),
    ] = ()
    refresh_s: Annotated[float, Key("how often it is asked which models it has", Duration(1.0, 30 * _DAY_S))] = 600.0
    connect_timeout_s: Annotated[float, Key("time to be connected", Duration(_SHORTEST_S, 600.0))] = 5.0
    read_timeout_s: Annotated[float, Key("longest silence of an answer", Duration(_SHORTEST_S, 3600.0))] = 120.0
    ca_file: Annotated[str, Key("certificates that its own must be signed by", FilePath(), "the system's")] = ""
    client_cert: Annotated[str, Key("a certificate to be shown to it", FilePath(), "none")] = ""
    client_key: Annotated[str, Key("the key of that certificate", FilePath(), "none")] = ""
    verify: Annotated[bool, Key("whether its certificate must be valid", Flag())] = True
    proxy: Annotated[str, Key("an HTTP proxy on the way there", Url(), "none")] = ""
    concurrency: Annotated[int, Key("requests that each of its models is sent at once", Whole(1, SLOTS_MAX))] = 4
    rate: Annotated[
        int, Key("requests that it is sent in a minute; 0: as many as there are", Whole(0, 1_000_000))
    ] = 0
    shares_memory: Annotated[
        str,
        Key(
            "whether what it loads takes this device's memory; auto: when its address is this device's",
            Choice(("auto", "true", "false")),
        ),
    ] = "auto"
    gpu_memory: Annotated[
        str,
        Key(
            "whose memory a GPU has that an Ollama on this device loads models onto: its own, which is not counted, "
            "or the device's; auto: its own where an NVIDIA driver tells of some",
            Choice(("auto", "own", "device")),
        ),
    ] = "auto"
    private_addresses: Annotated[bool, Key("whether link-local and metadata addresses may be spoken to", Flag())] = (
        False
    )


class Settings(Section, frozen=True, kw_only=True):
    """All keys."""

    socket: Socket
    access: AccessLists = AccessLists()
    state_dir: Annotated[
        str,
        Key(
            "where the daemon keeps what it must remember",
            FilePath(),
            "$STATE_DIRECTORY under systemd; /var/lib/h2qd for root; $XDG_STATE_HOME/h2qd; else ~/.local/state/h2qd",
        ),
    ]
    log: Log = Log()
    residency: Residency = Residency()
    requests: Requests = Requests()
    worker: Worker = Worker()
    shutdown: Shutdown = Shutdown()
    sessions: Sessions = Sessions()
    failures: Failures = Failures()
    memory: Memory = Memory()
    guard: Guard = Guard()
    model: ModelDefaults = ModelDefaults()
    models: dict[str, Model] = {}
    remotes: dict[str, Remote] = {}


class Config(Settings, frozen=True, kw_only=True):
    """Settings in force. `file`: what was read, empty for none. `sources`: key to where its value comes from."""

    file: str
    sources: dict[str, str]
    warnings: tuple[str, ...] = ()

    def values(self) -> list[ConfigValue]:
        """Every key in force, models included, in the order of the schema, as a file may say it."""
        rows = [self._row(key, spec, self) for key, spec in KEYS.items()]
        for name, model in self.models.items():
            rows += [self._row(f"models.{name}.{key}", spec, model, key) for key, spec in MODEL_KEYS.items()]
        for name, remote in self.remotes.items():
            rows += [self._row(f"remotes.{name}.{key}", spec, remote, key) for key, spec in REMOTE_KEYS.items()]
        return rows

    def _row(self, key: str, spec: Key, section: Section, below: str = "") -> ConfigValue:
        value = value_at(section, below or key)
        shown = None if value is None else spec.kind.show(value)
        return ConfigValue(key, shown, self.sources.get(key, "default"))


def value_at(section: Section, key: str) -> Any:
    """The value of the dotted `key` below `section`."""
    value: Any = section
    for name in key.split("."):
        value = getattr(value, _attribute(type(value), name))
    return value


def _attribute(section: type[Section], name: str) -> str:
    return next(field.name for field in msgspec.structs.fields(section) if field.encode_name == name)


def _walk(section: type[Section], prefix: str = "") -> Iterator[tuple[str, Key]]:
    hints = get_type_hints(section, include_extras=True)
    for field in msgspec.structs.fields(section):
        hint = hints[field.name]
        key = prefix + field.encode_name
        if get_origin(hint) is Annotated:
            yield key, get_args(hint)[1]
        elif isinstance(hint, type) and issubclass(hint, Section):
            yield from _walk(hint, f"{key}.")


KEYS: dict[str, Key] = dict(_walk(Settings))
"""Every dotted key outside of `models`."""

MODEL_KEYS: dict[str, Key] = dict(_walk(Model))
"""The keys of one entry of `models`."""

LOCAL_KEYS = frozenset({"path", "kv_type", "min_ctx", "degrade", "backend", "quantize", "adapters"})
"""Those of them that only models of this device have."""

REMOTE_KEYS: dict[str, Key] = dict(_walk(Remote))
"""The keys of one entry of `remotes`."""


class Map(msgspec.Struct, frozen=True):
    """A part of the file that maps names to entries, each with the same keys."""

    what: str
    keys: dict[str, Key]
    required: tuple[str, ...]
    entries_max: int


MAPS: dict[str, Map] = {
    "models": Map("model", MODEL_KEYS, ("path",), MODELS_MAX),
    "remotes": Map("remote", REMOTE_KEYS, ("type", "url"), REMOTES_MAX),
}
"""The maps of a file, by their key."""
