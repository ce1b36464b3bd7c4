"""How a worker is to speak to each server of the configuration, and whose memory it takes what it loads there.

Made anew for each order: whether a GPU has memory of its own is known only once its driver was asked. No key is read
here, only named. Called by `engines`, `remotes` and `pulls`.
"""

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import psutil

from h2qd.config.schema import Remote
from h2qd.logs import get_logger
from h2qd.wire.workers import RemoteTarget

log = get_logger()


@dataclass(frozen=True, slots=True)
class Targets:
    """`gpu_has_memory`: whether a GPU of this device has memory of its own, as far as that is known now."""

    remotes: Mapping[str, Remote]
    gpu_has_memory: Callable[[], bool]

    def of(self, server: str) -> RemoteTarget:
        """How to speak to one of the servers."""
        remote = self.remotes[server]
        own = remote.gpu_memory == "own" or (remote.gpu_memory == "auto" and self.gpu_has_memory())
        return RemoteTarget(
            kind="ollama" if remote.type == "ollama" else "openai",
            url=remote.url,
            key_env=remote.key_env,
            key_credential=remote.key_credential,
            connect_s=remote.connect_timeout_s,
            read_s=remote.read_timeout_s,
            ca_file=remote.ca_file,
            client_cert=remote.client_cert,
            client_key=remote.client_key,
            verify=remote.verify,
            proxy=remote.proxy,
            concurrency=remote.concurrency,
            rate_per_min=remote.rate,
            shares_memory="true" if shares_memory(remote) else "false",
            gpu_shares_memory=not own,
            private_addresses=remote.private_addresses,
        )


def shares_memory(remote: Remote) -> bool:
    """Whether what an Ollama server loads takes this device's memory."""
    if remote.type != "ollama" or remote.shares_memory != "auto":
        return remote.type == "ollama" and remote.shares_memory == "true"
    return _is_here(remote.url)


def exposed(remotes: Mapping[str, Remote]) -> tuple[str, ...]:
    """The servers whose keys travel to another machine for everybody on the way to read."""
    keyed = {name: remote.url for name, remote in remotes.items() if remote.key_env or remote.key_credential}
    return tuple(name for name, url in keyed.items() if urlsplit(url).scheme == "http" and not _is_here(url))


def _is_here(url: str) -> bool:
    """Whether a URL's host is this device."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback or host in _own_addresses()
    except ValueError:
        return host == "localhost"


def _own_addresses() -> set[str]:
    """Those of this device; none where a sandbox keeps the kernel from telling."""
    try:
        interfaces = psutil.net_if_addrs()
    except OSError as error:
        log.warning("interfaces.unreadable", error=str(error))
        return set()
    return {address.address for addresses in interfaces.values() for address in addresses}
