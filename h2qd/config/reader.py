"""File, environment and options to one `Config`, or to all that is wrong with them at once.

Later wins: built-in default, file, environment, option. This is the only place of the daemon that reads a
configuration file or takes the environment; what the texts mean is decided in `table` and `kinds`.
Called by the daemon's composition root, once, before the event loop runs.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from h2qd.config import document, places
from h2qd.config.faults import ConfigError, Fault
from h2qd.config.schema import ADAPTERS_MAX, Config, Failures, Guard, Model, Remote, Section, Worker
from h2qd.config.table import Table, nearest
from h2qd.config.units import show_duration
from h2qd.wire.names import shown, tagged

DEFAULT_FILE = "/etc/h2qd/h2qd.yaml"
"""Read when nobody names a file and this one exists."""

FILE_VARIABLE = "H2Q_CONFIG"

VARIABLES = {"H2Q_SOCKET": "socket.path", "H2Q_STATE_DIR": "state_dir", "H2Q_LOG_LEVEL": "log.level"}
"""Environment variables and the keys they set; an empty variable counts as unset."""

OPTIONS = {"--socket": "socket.path", "--state-dir": "state_dir", "--log-level": "log.level"}
"""Command line options and the keys they set."""

AnySection = TypeVar("AnySection", bound=Section)


def load_config(path: str | None, environ: Mapping[str, str], options: Mapping[str, str]) -> Config:
    """The configuration in force.

    The file is `path`, else what `H2Q_CONFIG` in `environ` names, else `DEFAULT_FILE` if it exists, else none.
    `options` maps names of `OPTIONS` to their texts. Raises `ConfigError` with every mistake found.
    """
    file = path or environ.get(FILE_VARIABLE) or (DEFAULT_FILE if os.path.lexists(DEFAULT_FILE) else "")
    table = Table(file)
    warnings = [*_read_file(file, table), *_strange_variables(environ)] if file else _strange_variables(environ)
    _override(table, {name: environ[name] for name in VARIABLES if environ.get(name)}, VARIABLES)
    _override(table, options, OPTIONS)
    _fill_computed(table, environ)
    table.faults += _contradictions(table)
    if table.faults:
        raise ConfigError(table.faults)
    models = {name: _built(Model, values) for name, values in table.maps["models"].items()}
    remotes = {name: _built(Remote, values) for name, values in table.maps["remotes"].items()}
    values = {**table.values, "models": models, "remotes": remotes}
    return _built(Config, values, file=file, sources=table.sources, warnings=tuple(warnings))


def _read_file(file: str, table: Table) -> list[str]:
    """Fill `table` from `file`; what is strange about the file without being wrong."""
    try:
        data, mode = _regular_file(file)
    except OSError as error:
        table.refuse(file, "", f"cannot read the configuration: {error.strerror}")
        return []
    except ValueError:  # NUL, or no text that a file system could hold
        table.refuse(file, "", "cannot read the configuration: this is no path")
        return []
    top, faults = document.parse(data, file)
    table.faults += faults
    table.read(top)
    return [f"{shown(file)} can be written by every user of this machine"] if mode & stat.S_IWOTH else []


def _regular_file(file: str) -> tuple[bytes, int]:
    """The content of `file`, of at most one byte more than a document may have, and its mode."""
    # Without O_NONBLOCK a FIFO under this name would hold the daemon's start for ever.
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as stream:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(0, "it is not a regular file")
        return stream.read(document.DOCUMENT_BYTES_MAX + 1), mode


def _strange_variables(environ: Mapping[str, str]) -> list[str]:
    known = [FILE_VARIABLE, *VARIABLES]
    strange = sorted(name for name in environ if name.startswith("H2Q_") and name not in known)
    return [f"the variable {shown(name)} is not read{_did_you_mean(name, known)}" for name in strange]


def _did_you_mean(name: str, known: list[str]) -> str:
    near = nearest(name, known)
    return f": did you mean {near}?" if near else ""


def _override(table: Table, texts: Mapping[str, str], known: Mapping[str, str]) -> None:
    """Lay variables or options over what the table has; `known` maps their names to keys."""
    for name, text in texts.items():
        if name in known:
            table.take(text, known[name], where=name, folder=".", source=name)
        else:
            table.refuse(name, "", f"cannot use an unknown option{_did_you_mean(name, list(known))}")


def _fill_computed(table: Table, environ: Mapping[str, str]) -> None:
    """Give the keys whose default depends on where the daemon runs."""
    uid = os.getuid()
    home = environ.get("HOME") or os.path.expanduser("~")  # noqa: PTH111 - Path raises where there is no home
    computed = {
        "socket.path": places.default_socket(environ, uid),
        "state_dir": places.default_state_dir(environ, uid, home),
    }
    for key, text in computed.items():
        if key not in table.values:
            table.take(text, key, where="default", folder="/", source="default")


def _built(section: type[AnySection], values: Mapping[str, Any], prefix: str = "", **parts: Any) -> AnySection:
    """A section from flat `values`, and `parts` that are no keys; what is absent keeps the default of the schema."""
    for field in msgspec.structs.fields(section):
        key = prefix + field.encode_name
        if isinstance(field.type, type) and issubclass(field.type, Section):
            parts[field.name] = _built(field.type, values, f"{key}.")
        elif key in values:
            parts[field.name] = values[key]
    return section(**parts)


def _contradictions(table: Table) -> Iterator[Fault]:
    """Values that are possible alone and not together. A fault stands where one of the two was set."""
    failures = _built(Failures, table.values, "failures.")
    worker = _built(Worker, table.values, "worker.")
    if failures.backoff_first_s > failures.backoff_max_s:
        first, longest = show_duration(failures.backoff_first_s), show_duration(failures.backoff_max_s)
        text = f"cannot use '{first}': failures.backoff_max is {longest}, which is less"
        yield _contradiction(table, "failures.backoff_first", "failures.backoff_max", text)
    if worker.ping_interval_s >= worker.stall_timeout_s:
        ping, stall = show_duration(worker.ping_interval_s), show_duration(worker.stall_timeout_s)
        text = f"cannot use '{ping}': worker.stall_timeout is {stall}, and must be longer"
        yield _contradiction(table, "worker.ping_interval", "worker.stall_timeout", text)
    guard = _built(Guard, table.values, "guard.")
    for lower, upper in (("warn", "critical"), ("critical", "emergency")):
        low, high = getattr(guard, lower), getattr(guard, upper)
        if low >= high:
            text = f"cannot use '{low:.0%}': guard.{upper} is {high:.0%}, and must be more"
            yield _contradiction(table, f"guard.{lower}", f"guard.{upper}", text)
    yield from _unknown_variants(table)
    yield from _odd_remotes(table)
    yield from _doubtful_adapters(table)


def _odd_remotes(table: Table) -> Iterator[Fault]:
    for name, values in table.maps["remotes"].items():
        if "/" in name:
            text = "cannot use this name for a remote: what it has is called NAME/MODEL, so it may hold no /"
            yield Fault(table.sources[f"remotes.{name}.url"], f"remotes.{name}", text)
        theirs = [tagged(model) for _, model in values.get("aliases", ())]
        if len(theirs) > len(set(theirs)):
            key = f"remotes.{name}.aliases"
            yield Fault(table.sources[key], key, "cannot use two aliases of one model")
        for one, other, why in (
            ("key_credential", "key_env", "says already where the key is"),
            ("client_key", "client_cert", ""),
            ("client_cert", "client_key", ""),
        ):
            if one in values and (other in values) == bool(why):
                key = f"remotes.{name}.{one}"
                text = f"cannot use it: {other} {why}" if why else f"cannot use it without {other}"
                yield Fault(table.sources[key], key, text)


def _unknown_variants(table: Table) -> Iterator[Fault]:
    """Variants that are the model itself. Others may be registered by an import, so they need not be named here."""
    for name, values in table.maps["models"].items():
        if name in values.get("variants", ()):
            key = f"models.{name}.variants"
            yield Fault(table.sources[key], key, f"cannot use '{name}': it is the model itself")


def _doubtful_adapters(table: Table) -> Iterator[Fault]:
    """Too many of one model, or two of one name."""
    for model, values in table.maps["models"].items():
        key = f"models.{model}.adapters"
        names = [name for name, _ in values.get("adapters", ())]
        if len(names) > ADAPTERS_MAX:
            yield Fault(table.sources[key], key, f"cannot use {len(names)} adapters: at most {ADAPTERS_MAX}")
        elif len(names) > len(set(names)):
            yield Fault(table.sources[key], key, "cannot use two adapters of one name")


def _contradiction(table: Table, key: str, other: str, text: str) -> Fault:
    return Fault(table.sources.get(key) or table.sources[other], key, text)
