"""Reports: what the daemon says of itself when asked. Put together on demand from the state and the adapters.

Decides nothing and changes nothing; each report is cheap enough for the loop. Called by `commands`.
"""

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgpack
import msgspec
import psutil
import zmq

from h2qd import __version__
from h2qd.config import Config
from h2qd.core.guard import Level
from h2qd.core.states import HOLDING, RESIDENT
from h2qd.runtime import views
from h2qd.runtime.calls import Calls
from h2qd.runtime.containment import Containers
from h2qd.runtime.doctor import examine
from h2qd.runtime.elsewhere import Elsewhere
from h2qd.runtime.meter import rss_bytes
from h2qd.runtime.residents import Residents
from h2qd.runtime.scales import Scales
from h2qd.runtime.supervisor import Supervisor
from h2qd.runtime.watch import Watch
from h2qd.runtime.zygote import Zygote
from h2qd.store.registry import Manifest
from h2qd.wire import messages as m
from h2qd.wire.limits import PROTOCOL_VERSION

_LEVELS: dict[Level, m.Level] = {
    Level.NORMAL: "normal",
    Level.WARN: "warn",
    Level.CRITICAL: "critical",
    Level.EMERGENCY: "emergency",
}


class Reports:
    """What the adapters and the state tell. `phase` says what the daemon is about.

    `exposed`: the servers whose keys others can read on the way.
    """

    def __init__(
        self,
        config: Config,
        supervisor: Supervisor,
        calls: Calls,
        residents: Residents,
        elsewhere: Elsewhere,
        watch: Watch,
        containers: Containers,
        zygote: Zygote,
        scales: Scales,
        manifests: Mapping[str, Manifest],
        missing: Mapping[str, m.ModelRow],
        phase: Callable[[], str],
        stall_trouble: Callable[[], str],
        exposed: tuple[str, ...],
    ) -> None:
        self._config = config
        self._supervisor = supervisor
        self._calls = calls
        self._residents = residents
        self._elsewhere = elsewhere
        self._watch = watch
        self._containers = containers
        self._zygote = zygote
        self._scales = scales
        self._manifests = manifests
        self._missing = missing
        self._phase = phase
        self._stall_trouble = stall_trouble
        self._exposed = exposed
        self._began = time.monotonic()
        self._pid = os.getpid()

    def status(self) -> m.Status:
        """The daemon at a glance."""
        state, own_bytes = self._supervisor.state, rss_bytes(self._pid)
        return m.Status(
            version=__version__,
            pid=self._pid,
            phase=self._phase(),
            uptime_ms=round((time.monotonic() - self._began) * 1000),
            policy=self._config.residency.policy,
            active=state.active,
            resident=[x.name for x in state.models.values() if x.status in RESIDENT],
            running=len(state.running),
            waiting=len(state.waiting),
            models=len(state.models),
            switch=views.switch_view(state),
            memory=m.MemoryView(
                limit_bytes=self._watch.limits.models_bytes,
                available_bytes=self._watch.reading.available_bytes,
                held_bytes=sum(x.held_bytes for x in state.models.values()),
                supervisor_bytes=own_bytes,
                max_bytes=self._watch.limits.max_bytes,
                level=_LEVELS[state.guard.level],
                layers=self._layers(own_bytes),
            ),
            degraded=list(self._degraded()),
            servers=[views.server_row(name, breaker) for name, breaker in sorted(state.breakers.items())],
        )

    def _degraded(self) -> Iterator[str]:
        """What is not as it should be, in words."""
        state = self._supervisor.state
        if state.guard.level > Level.NORMAL:
            share = f"{state.guard.used_share:.0%} of the device's memory is in use"
            yield f"memory is short ({state.guard.level.name.lower()}): {share}"
        yield from self._watch.complaints(sum(x.held_bytes for x in state.models.values()))
        if self._containers.trouble:
            yield f"nothing keeps a worker to its plan: {self._containers.trouble}"
        away = {name: breaker for name, breaker in state.breakers.items() if breaker.retry_at is not None}
        for name, row in self._missing.items():
            if name not in state.models and name.removesuffix("/*") not in away:
                yield f"{name} cannot be used: {row.reason}"
        for name, breaker in away.items():
            yield views.server_away(views.server_row(name, breaker))
        for name, size in self._elsewhere.foreign_bytes().items():
            yield f"{name} holds {size / 2**20:.0f} MiB of this device for models that others loaded there"
        for name in self._exposed:
            yield f"the key of {name} travels in plain text: its url is not https"

    def _layers(self, own_bytes: int) -> list[m.MemoryLayer]:
        return views.layers(self._watch.limits, self._supervisor.state, own_bytes + self._scales.idle_bytes)

    def top(self) -> m.Top:
        """The device's memory now, by layer and by worker."""
        state, reading = self._supervisor.state, self._watch.reading
        holding = [x for x in state.models.values() if x.status in HOLDING]
        workers = [views.worker_row(state, self._residents, x) for x in holding]
        return m.Top(
            level=_LEVELS[state.guard.level],
            since_ms=max(0, round((time.monotonic() - max(state.guard.since, self._began)) * 1000)),
            used_share=round(reading.used_share * 100, 1),
            total_bytes=reading.total_bytes,
            available_bytes=reading.available_bytes,
            layers=self._layers(rss_bytes(self._pid)),
            workers=workers,
            requests=views.ps(state, self._residents, self._calls).requests,
            running=len(state.running),
            waiting=len(state.waiting),
            tokens_per_s=round(sum(row.tokens_per_s for row in workers), 1),
            some_stall_share=reading.some_stall_share,
            full_stall_share=reading.full_stall_share,
            swap_used_bytes=reading.swap_used_bytes,
            swap_in_bytes_per_s=round(reading.swap_in_bytes_per_s, 1),
            temperature_c=reading.temperature_c,
            devices=[m.DeviceRow(x.name, x.total_bytes, x.used_bytes) for x in reading.devices],
            switch=views.switch_view(state),
        )

    def version(self) -> m.Version:
        """Versions of the daemon and of what it runs on."""
        libraries = {
            "libzmq": zmq.zmq_version(),
            "pyzmq": zmq.__version__,
            "msgspec": msgspec.__version__,
            "msgpack": ".".join(map(str, msgpack.version)),
            "psutil": psutil.__version__,
            **self._zygote.libraries,
        }
        return m.Version(__version__, PROTOCOL_VERSION, platform.python_version(), libraries)

    def config(self) -> m.Config:
        """The configuration in force."""
        return m.Config(self._config.file, self._config.values())

    def doctor(self) -> m.Doctor:
        """What the daemon finds wrong with its surroundings."""
        findings = examine(
            limit_bytes=self._watch.limits.models_bytes,
            available_bytes=self._watch.reading.available_bytes,
            containers=self._containers,
            state_dir=Path(self._config.state_dir),
            libraries=self._zygote.libraries,
            zygote_ready=self._zygote.ready,
            manifests=self._manifests,
            missing=self._missing,
            stall_trouble=self._stall_trouble(),
            exposed=self._exposed,
        )
        return m.Doctor(list(findings))
