"""The servers of the configuration: what they have, as models in the one list, and how a worker is to speak to them.

Each server is asked by a worker (`errands`) at the start, every so often, and when the core wants it. What it has is
registered under `REMOTE/NAME`; what it no longer has is forgotten, and one that cannot be asked is told of with the
reason, its models staying as they were. Keys are not read here, only missed. Called by the daemon, which owns the
task of each server, and by `pulls` and `commands`, which ask what a name means there.
Invariant: nothing of a server is kept on disk.
"""

import asyncio
import contextlib
import difflib
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from h2qd.config.schema import Remote
from h2qd.core.records import Fault
from h2qd.logs import get_logger
from h2qd.runtime import views
from h2qd.runtime.elsewhere import Elsewhere
from h2qd.runtime.errands import Errands
from h2qd.runtime.refusal import Refusal
from h2qd.runtime.targets import Targets, shares_memory
from h2qd.store.registry import Manifest
from h2qd.wire import messages as m
from h2qd.wire.names import name_fault, shown, tagged
from h2qd.wire.workers import Listed, ListModels, RemoteModel

log = get_logger()

MODELS_MAX = 256
"""Models of one server that are registered here; `remotes.NAME.models` chooses."""

_RETRY_S_MIN = 1.0
"""Doubled before each time that a server is asked again, at most until it would be asked anyway."""
_HELD_S = 60.0
"""Between two looks at what a server on this device holds of its memory, while none of its models is resident."""
_TYPED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]*")
"""A server's name of a model that a shell takes as it stands."""


@dataclass(slots=True, eq=False)
class _Server:
    """A server of the configuration. `lists`: how often it said what it has; `wanted_at`: when it is to be asked.

    `looked`: it has been asked once, with whatever success; `answered`: it said what it has; `wanted`: there is a new
    `wanted_at`.
    """

    remote: Remote
    lists: int = 0
    wanted_at: float = math.inf
    looked: asyncio.Event = field(default_factory=asyncio.Event)
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    wanted: asyncio.Event = field(default_factory=asyncio.Event)


class Remotes:
    """Asks the servers and keeps `manifests` and `missing` in step; `registered` and `gone` are told of what changed.

    `asked` is told of each time that a server was asked, and whether it answered. `environ` is the daemon's
    environment: keys are looked for in it, not read.
    """

    def __init__(
        self,
        targets: Targets,
        errands: Errands,
        elsewhere: Elsewhere,
        environ: Mapping[str, str],
        manifests: Mapping[str, Manifest],
        missing: dict[str, m.ModelRow],
        registered: Callable[[Manifest], None],
        gone: Callable[[str], None],
        asked: Callable[[str, Fault | None], None],
    ) -> None:
        self._servers = {name: _Server(remote) for name, remote in targets.remotes.items()}
        self._targets = targets
        self._errands = errands
        self._elsewhere = elsewhere
        self._environ = environ
        self._manifests = manifests
        self._missing = missing
        self._registered = registered
        self._gone = gone
        self._asked = asked

    async def follow(self, name: str) -> None:
        """Ask the server `name` now and then, for ever; when the core says so; and sooner after it did not answer."""
        server, wait_s = self._servers[name], _RETRY_S_MIN
        while True:
            server.wanted_at = math.inf
            try:
                answers = await self._refresh(name)
            except Exception:  # a defect of ours costs this look, not all those that would follow
                log.exception("remote.look_defect", remote=name)
                answers = False
            server.looked.set()
            calm_s = _calm_s(server.remote)
            wait_s = calm_s if answers else min(2 * wait_s, calm_s)
            await _rest(server, wait_s)

    def ask(self, name: str, at: float) -> None:
        """Have a server asked at `at` on the loop's clock, whenever else it would be."""
        if (server := self._servers.get(name)) is not None:
            server.wanted_at = at
            server.wanted.set()

    async def looked(self, names: Iterable[str]) -> None:
        """Until the servers of the models `names` have been asked once, with whatever success."""
        for server in self.servers_of(names):
            await self._servers[server].looked.wait()

    async def answered(self, server: str, within_s: float) -> bool:
        """Whether a server said what it has, at any time before or within so long from now."""
        try:
            async with asyncio.timeout(within_s):
                await self._servers[server].answered.wait()
        except TimeoutError:
            return False
        return True

    def servers_of(self, names: Iterable[str]) -> set[str]:
        """The servers that models of these names are of."""
        return {name.partition("/")[0] for name in names} & self._servers.keys()

    def to_pull(self, name: str) -> tuple[str, str]:
        """The server, and its own name, of what a user calls `name`, which may be there or not.

        Raises `Refusal`: invalid_request (there is no such server, or it is not to offer that), unsupported (it
        cannot pull), remote_unreachable (it cannot be asked at all).
        """
        server, _, model = name.partition("/")
        if server not in self._servers or not model:
            raise Refusal(self._no_server(name, server if model else ""))
        remote = self._servers[server].remote
        model = dict(remote.aliases).get(model, model)
        if remote.type != "ollama":
            raise Refusal(Fault("unsupported", f"cannot pull {shown(name)}: {server} is no Ollama, and cannot pull"))
        if not _offers(remote, model):
            fix = f"add {shown(model)} to remotes.{server}.models in the configuration"
            raise Refusal(
                Fault("invalid_request", f"cannot pull {shown(name)}: it would not be offered here", fix=fix)
            )
        if (lacks := self._lacking(remote)) is not None:
            raise Refusal(Fault("remote_unreachable", f"cannot pull {shown(name)}: {lacks.message}"))
        return server, model

    def how_to_get(self, name: str) -> str:
        """The command that would fetch `name`, which is not there; empty where none would."""
        try:
            self.to_pull(name)
        except Refusal:
            return ""
        return f"h2qctl pull {name}" if _TYPED.fullmatch(name) else ""

    def called(self, name: str) -> str:
        """What the model that a user calls `name` is registered as, if it is at all.

        A server's model may be called as the server calls it: in other letters, without its tag, or in spite of an
        alias.
        """
        server, _, model = name.partition("/")
        if name in self._manifests or server not in self._servers:
            return name
        found = self.named(server, model)
        return found.name if found is not None else name

    def named(self, server: str, model: str) -> Manifest | None:
        """What is registered of a server's `model`, called as its users may call it there."""
        ours = (one for one in self._manifests.values() if one.remote == server)
        return next((one for one in ours if tagged(one.path) == tagged(model)), None)

    def learn(self, name: str, listed: Listed) -> None:
        """What the server `name` has now, as it said itself."""
        self._servers[name].lists += 1
        if self._missing.pop(f"{name}/*", None) is not None:
            log.info("remote.available", remote=name)
        self._update(name, listed.models)
        self._elsewhere.heard(name, listed.running)
        self._servers[name].answered.set()
        self._asked(name, None)

    def _no_server(self, name: str, server: str) -> Fault:
        what = f"there is no remote {shown(server)}" if server else "say which server is to fetch it: REMOTE/NAME"
        because = f"the configuration's remotes are {', '.join(self._servers)}" if self._servers else "it names none"
        ollamas = [known for known, one in self._servers.items() if one.remote.type == "ollama"]
        near = difflib.get_close_matches(server[:64], ollamas, 1) or (ollamas if len(ollamas) == 1 else [])
        model = name.partition("/")[2] if server else name
        fix = f"h2qctl pull {near[0]}/{model}" if near and _TYPED.fullmatch(model) else "h2qctl config"
        return Fault("invalid_request", f"cannot pull {shown(name)}: {what}", (because,), fix=fix)

    async def _refresh(self, name: str) -> bool:
        server = self._servers[name]
        fault = self._lacking(server.remote)
        listed: Listed | None = None
        lists = server.lists
        if fault is None:
            try:
                listed = await self._errands.run(ListModels(self._targets.of(name)), name, Listed, lambda _: None)
            except Refusal as refusal:
                fault = refusal.fault
        if fault is not None:
            row = views.missing_row(f"{name}/*", server.remote.url, fault, server.remote.type)
            if self._missing.get(row.name) != row:
                log.warning("remote.unavailable", remote=name, why=row.reason)
            self._missing[row.name] = row
            self._elsewhere.heard(name, ())
            self._asked(name, fault)
            return False
        if listed is not None and server.lists == lists:  # else a pull ended meanwhile, and knows better
            self.learn(name, listed)
        return True

    def _lacking(self, remote: Remote) -> Fault | None:
        """What is missing before the server can be asked at all."""
        if remote.key_env and not self._environ.get(remote.key_env):
            return Fault("load_failed", f"the variable {remote.key_env} is not set: it is to hold the key")
        if remote.key_credential and not self._environ.get("CREDENTIALS_DIRECTORY"):
            what = f"there are no systemd credentials, of which {remote.key_credential} is to hold the key"
            return Fault("load_failed", what)
        return None

    def _update(self, name: str, models: list[RemoteModel]) -> None:
        remote = self._servers[name].remote
        aliases = {tagged(theirs): ours for ours, theirs in remote.aliases}
        wanted = [model for model in models if _offers(remote, model.name)]
        wanted.sort(key=lambda model: tagged(model.name) not in aliases)  # whose name was chosen comes first
        if len(wanted) > MODELS_MAX:
            log.warning("remote.too_many_models", remote=name, models=len(wanted), registered=MODELS_MAX)
        found = {}
        shares = shares_memory(remote)
        for model in wanted[:MODELS_MAX]:
            alias = aliases.get(tagged(model.name))
            ours = f"{name}/{alias}" if alias else local_name(name, model.name)
            manifest = _manifest(name, remote.type, model, ours, shares=shares)
            if manifest.name in found or name_fault(manifest.name):
                log.warning("remote.model_skipped", remote=name, model=shown(model.name))
                continue
            found[manifest.name] = manifest
        for manifest in found.values():
            known = self._manifests.get(manifest.name)
            if known is None or known.facts != manifest.facts:
                self._registered(manifest)
        for manifest in list(self._manifests.values()):
            if manifest.remote == name and manifest.name not in found:
                self._gone(manifest.name)


async def _rest(server: _Server, wait_s: float) -> None:
    """Until it is time to ask: in `wait_s`, unless the core has said when."""
    until = asyncio.get_running_loop().time() + wait_s
    while True:
        server.wanted.clear()
        due = server.wanted_at if server.wanted_at < math.inf else until
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(due):
                await server.wanted.wait()
                continue
        return


def _calm_s(remote: Remote) -> float:
    """How long a server that answers is left alone."""
    return min(remote.refresh_s, _HELD_S) if shares_memory(remote) else remote.refresh_s


def _offers(remote: Remote, model: str) -> bool:
    """Whether a server's `model` is to be in the list here."""
    chosen = {*remote.models, *(theirs for _, theirs in remote.aliases)}
    return not remote.models or tagged(model) in map(tagged, chosen)


def local_name(remote: str, name: str) -> str:
    """What a server's model is called here: its name in the letters that names have here, below the server's."""
    parts = (re.sub(r"[^a-z0-9._:-]+", "-", part).strip("-._:") for part in name.lower().split("/"))
    return "/".join((remote, *(re.sub(r"\.{2,}", ".", part) for part in parts if part)))


def _manifest(server: str, kind: str, model: RemoteModel, name: str, *, shares: bool) -> Manifest:
    """Of a server's model, which is `name` here. `shares`: what the server loads takes this device's memory."""
    facts = m.ModelFacts(
        format=kind,
        architecture=model.family,
        title=model.name,
        quantization=model.quantization,
        parameters=model.parameters,
        file_bytes=model.size_bytes,
        tensor_bytes=model.size_bytes if shares else 0,
        context_length=model.context_length,
    )
    return Manifest(
        name=name,
        path=model.name,
        backend=kind,
        sha256="",
        identity=[],
        facts=facts,
        imported_at_ms=round(time.time() * 1000),
        source="remote",
        remote=server,
    )
