"""A registry that a real Ollama pulls from, over TLS: one model, made of a GGUF file. Its blobs are elsewhere."""

import hashlib
import json
import ssl
from pathlib import Path

from tests.peers.http_server import HttpServer, Request, Response


class BlobStore(HttpServer):
    """Gives parts of blobs, by their digest."""

    def __init__(self) -> None:
        super().__init__()
        self.blobs: dict[str, bytes] = {}

    def add(self, data: bytes, kind: str) -> dict[str, object]:
        """A blob; how a manifest speaks of it."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    async def handle(self, request: Request, response: Response) -> None:
        blob = self.blobs[request.path.removeprefix("/")]
        first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
        await response.whole(206, blob[int(first) : int(last) + 1])


class OllamaRegistry(HttpServer):
    """`name` is what the model is pulled by. All else is nowhere."""

    def __init__(self, store: BlobStore, weights: Path, tls: ssl.SSLContext) -> None:
        super().__init__(tls)
        self._store = store
        config = {"model_format": "gguf", "model_family": "llama", "model_type": "1M", "file_type": "Q4_0"}
        model = store.add(weights.read_bytes(), "application/vnd.ollama.image.model")
        image = store.add(json.dumps(config).encode(), "application/vnd.docker.container.image.v1+json")
        self._manifest = {"schemaVersion": 2, "layers": [model], "config": image}

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.port}/shelf/tiny:1m"

    async def handle(self, request: Request, response: Response) -> None:
        folder, _, what = request.path.rpartition("/")
        response.headers["Connection"] = "close"
        if folder == "/v2/shelf/tiny/manifests" and what == "1m":
            await response.whole(200, self._manifest)
        elif folder == "/v2/shelf/tiny/blobs" and request.method == "HEAD":
            await response.head(200, {"Content-Length": str(len(self._store.blobs[what]))})
        elif folder == "/v2/shelf/tiny/blobs":
            # Only a redirect to another name is taken for the place where the parts are.
            await response.whole(307, b"", Location=f"http://localhost:{self._store.port}/{what}")
        else:
            await response.whole(404, {"errors": [{"code": "MANIFEST_UNKNOWN"}]})
        response.ended = False  # a connection is kept for nobody: an end in TLS takes two
