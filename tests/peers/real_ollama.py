"""A real Ollama server as a process on loopback, with a folder of models of its own; and how models get into it.

`H2Q_OLLAMA` names the binary, OLLAMA.md tells how to come by one. Its runners are its children: killed hard it leaves
them behind, so all of its process group ends with it.
"""

import hashlib
import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.peers.process import serving

BINARY = os.environ.get("H2Q_OLLAMA", "")
REASON = "H2Q_OLLAMA names no ollama"


@dataclass
class RealOllama:
    """One server. What is asked here is asked as somebody else, not as h2qd."""

    port: int
    process: "subprocess.Popen[bytes]"

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, body: object = None, method: str | None = None) -> dict[str, Any]:
        """GET, or POST `body` (bytes, or as JSON); the last object of the answer."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, method=method)  # noqa: S310 - it is http
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - as above
            lines = answer.read().splitlines()
        last: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        assert "error" not in last, last
        return last

    def create(self, name: str, weights: Path) -> None:
        """A model from a GGUF file."""
        data = weights.read_bytes()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.ask(f"/api/blobs/{digest}", data)
        self.ask("/api/create", {"model": name, "files": {weights.name: digest}})

    def delete(self, name: str) -> None:
        """A model goes from the disk."""
        self.ask("/api/delete", {"model": name}, "DELETE")

    def touch(self, name: str, **fields: object) -> None:
        """Load a model, or unload it (`keep_alive=0`)."""
        self.ask("/api/generate", {"model": name, "prompt": "", "stream": False, **fields})

    def loaded(self) -> dict[str, dict[str, Any]]:
        """/api/ps, by name."""
        return {one["name"]: one for one in self.ask("/api/ps")["models"]}

    def runners(self) -> list[psutil.Process]:
        """The processes that hold its models."""
        return psutil.Process(self.process.pid).children(recursive=True)


@contextmanager
def real_ollama(folder: Path, port: int, authority: str = "") -> Iterator[RealOllama]:
    """A server whose models are in `folder`, where an earlier one may have left some; it trusts `authority`."""
    folder.mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_MODELS": str(folder / "models"),
        "SSL_CERT_FILE": authority,
        "OLLAMA_REMOTES": "127.0.0.1",  # where models may run that run elsewhere
    }
    with serving([BINARY, "serve"], port, folder / "log", environment) as process:
        try:
            yield RealOllama(port, process)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
