"""The doctor: what the daemon finds wrong with its surroundings, each finding with the line that mends it.

Looks at the machine, the state folder, the engine and the model files; changes nothing. Cheap enough for the loop:
a few stat calls.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from h2qd.runtime.containment import Containers
from h2qd.safetensors.errors import SafetensorsError
from h2qd.safetensors.identity import identity_of
from h2qd.store.registry import Manifest
from h2qd.wire.messages import Check, ModelRow

_GIB = 2**30
_FREE_DISK_BYTES_MIN = 256 * 2**20
_SMALL_LIMIT_BYTES = _GIB // 2


def examine(
    *,
    limit_bytes: int,
    available_bytes: int,
    containers: Containers,
    state_dir: Path,
    libraries: Mapping[str, str],
    zygote_ready: bool,
    manifests: Mapping[str, Manifest],
    missing: Mapping[str, ModelRow],
    stall_trouble: str,
    exposed: tuple[str, ...],
) -> Iterator[Check]:
    """All findings, the good ones too."""
    yield _memory(limit_bytes, available_bytes)
    yield _pressure(stall_trouble)
    yield _cgroup(containers)
    yield _state(state_dir)
    yield _engine(libraries, ready=zygote_ready)
    yield from _models(manifests, missing)
    for name in exposed:
        detail = "its key travels to another machine in plain text, for everybody on the way to read"
        yield Check(f"remote {name}", "warn", detail, f"use https in remotes.{name}.url")


def _memory(limit: int, available: int) -> Check:
    detail = f"models may hold {limit / _GIB:.2f} GiB, {available / _GIB:.2f} GiB are available now"
    if limit < _SMALL_LIMIT_BYTES:
        return Check("memory", "warn", detail, "raise memory.model_limit, or lower memory.safety_buffer")
    return Check("memory", "ok", detail)


def _pressure(trouble: str) -> Check:
    if not trouble:
        return Check("pressure", "ok", "the kernel tells at once when tasks stall for want of memory (PSI)")
    detail = f"memory is looked at each second only: {trouble}"
    return Check("pressure", "warn", detail, "boot with psi=1, on Linux 6.5 or later")


def _cgroup(containers: Containers) -> Check:
    if not containers.trouble:
        return Check("cgroup", "ok", f"a worker that outgrows its plan is killed alone (cgroup {containers.kind})")
    detail = f"nothing keeps a worker to its plan: {containers.trouble}"
    return Check("cgroup", "warn", detail, "run h2qd as a systemd service with Delegate=yes, as systemd/h2qd.service")


def _state(folder: Path) -> Check:
    if not os.access(folder, os.W_OK):
        return Check("state", "fail", f"{folder} cannot be written", f"chown the daemon's user to {folder}")
    free = shutil.disk_usage(folder).free
    if free < _FREE_DISK_BYTES_MIN:
        return Check("state", "warn", f"{free / 2**20:.0f} MiB are free on {folder}", "free some disk space")
    return Check("state", "ok", f"{folder}, {free / _GIB:.1f} GiB free")


def _engine(libraries: Mapping[str, str], *, ready: bool) -> Check:
    if not ready:
        return Check(
            "engine", "fail", "the process that workers are forked from is not ready", "see the daemon's log"
        )
    if "llama-cpp-python" not in libraries:
        return Check("engine", "fail", "llama-cpp-python cannot be imported", "pip install llama-cpp-python")
    return Check("engine", "ok", ", ".join(f"{name} {version}" for name, version in libraries.items()))


def _models(manifests: Mapping[str, Manifest], missing: Mapping[str, ModelRow]) -> Iterator[Check]:
    if not manifests and not missing:
        yield Check("models", "warn", "no model is registered", "h2qctl import PATH")
    for server, count in sorted(Counter(one.remote for one in manifests.values() if one.remote).items()):
        yield Check(f"remote {server}", "ok", f"{count} model{'s' if count > 1 else ''} as of its last answer")
    for name, manifest in manifests.items():
        if manifest.remote:
            continue  # its server is asked, not its disk
        try:
            found = identity_of(manifest.path)
        except SafetensorsError:
            found = []
        except OSError as error:
            fix = f"put the file back, or h2qctl rm {name}"
            yield Check(f"model {name}", "fail", f"{manifest.path}: {error.strerror}", fix)
            continue
        if found != manifest.identity:
            fix = f"h2qctl import {manifest.path} --name {name}"
            yield Check(f"model {name}", "warn", f"{manifest.path} changed since it was checked", fix)
        else:
            yield Check(f"model {name}", "ok", manifest.path)
    for name, row in missing.items():
        server = name.partition("/")[0]
        if row.type == "local":
            yield Check(f"model {name}", "fail", row.reason, f"correct models.{name}.path in the configuration")
        else:
            fix = f"mend that, or remotes.{server} in the configuration; h2qctl models shows when it is there"
            yield Check(f"remote {server}", "fail", row.reason, fix)
