"""Ollama's API as a peer: what OLLAMA.md lists, checked against its source. Its text and memory are pretended."""

import asyncio
import hashlib
import time
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tests.peers.http_server import HttpServer, Request, Response

MIB = 1024 * 1024


@dataclass
class Model:
    """A model on the server's disk. The same `weights` are loaded once; with a `remote_host` they are there."""

    name: str
    size: int = 300 * MIB
    size_vram: int = 0
    capabilities: list[str] = field(default_factory=lambda: ["completion"])
    context_length: int = 2048
    load_s: float = 0.0
    weights: str = ""
    remote_host: str = ""

    @property
    def file(self) -> str:
        """Its weights, as a Modelfile names them."""
        return f"/models/blobs/{self.weights or self.name}" if not self.remote_host else ""


@dataclass
class Loaded:
    model: Model
    num_ctx: int
    expires: asyncio.TimerHandle | None = None
    users: int = 0
    keep_s: float = 300.0


class OllamaServer(HttpServer):
    """`words` are an answer's pieces, `word_s` the time between two. `midway` is called before the n-th of them.

    A model that can think says `thoughts` first, unless it is told not to. One that has tools says `calls`, one line
    each, instead of words, where no outcome of one is the last message.
    """

    def __init__(self, *models: Model, **options: Any) -> None:
        super().__init__(**options)
        self.models = {model.name.lower(): model for model in models or (Model("gemma3:latest"),)}
        self.loaded: dict[str, Loaded] = {}
        self.words = ["tok0 ", "tok1 ", "tok2 ", "tok3 "]
        self.word_s = 0.0
        self.loads = 0
        self.thoughts: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.midway: tuple[int, Any] | None = None

    async def handle(self, request: Request, response: Response) -> None:
        known = {
            ("GET", "/api/version"): self._version,
            ("GET", "/api/tags"): self._tags,
            ("GET", "/api/ps"): self._ps,
            ("POST", "/api/show"): self._show,
            ("POST", "/api/generate"): self._generate,
            ("POST", "/api/chat"): self._generate,
            ("POST", "/api/embed"): self._embed,
            ("POST", "/api/pull"): self._pull,
        }
        handler = known.get((request.method, request.path))
        if handler is None:
            await response.whole(404, b"404 page not found")
        else:
            await handler(request, response)

    def expire(self, name: str) -> None:
        """As if somebody ran `ollama stop`."""
        self.call(lambda: self.loaded.pop(name, None))

    def advance(self, seconds: float) -> None:
        """Let that much time pass for what is loaded."""
        self.call(lambda: self._age(seconds))

    def _age(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        for one in list(self.loaded.values()):
            if one.expires is None:
                continue
            left_s = one.expires.when() - loop.time() - seconds
            one.expires.cancel()
            if left_s > 0:
                one.expires = loop.call_later(left_s, self._drop, one)
            else:
                self._drop(one)

    # --- what there is --------------------------------------------------------------------------------

    async def _version(self, _: Request, response: Response) -> None:
        await response.whole(200, {"version": "0.12.6"})

    async def _tags(self, _: Request, response: Response) -> None:
        models = [
            {
                "name": model.name,
                "model": model.name,
                "modified_at": "2026-01-01T00:00:00Z",
                "size": model.size,
                "digest": _digest(model),
                "details": {
                    "parent_model": "",
                    "format": "gguf",
                    "family": "gemma3",
                    "families": ["gemma3"],
                    "parameter_size": "268.10M",
                    "quantization_level": "Q4_K_M",
                    "context_length": model.context_length,
                },
                "capabilities": model.capabilities,
            }
            for model in self.models.values()
        ]
        await response.whole(200, {"models": models})

    async def _ps(self, _: Request, response: Response) -> None:
        models = [
            {
                "name": name,
                "model": name,
                "size": one.model.size,
                "digest": _digest(one.model),
                "details": {"family": "gemma3"},
                "expires_at": "2318-01-01T00:00:00Z" if one.keep_s < 0 else "2026-01-01T00:05:00Z",
                "size_vram": one.model.size_vram,
                "context_length": one.num_ctx,
            }
            for name, one in self.loaded.items()
        ]
        await response.whole(200, {"models": models})

    async def _show(self, request: Request, response: Response) -> None:
        model = self._find(request)
        if model is None:
            await response.whole(404, {"error": f"model '{_tagged(request.json['model'])}' not found"})
            return
        info = {"general.architecture": "gemma3", "gemma3.context_length": model.context_length}
        shown = {
            "modelfile": f"# FROM {model.name}\n\nFROM {model.file}\nTEMPLATE {{{{ .Prompt }}}}\n",
            "details": {},
            "model_info": info,
            "capabilities": model.capabilities,
        }
        await response.whole(200, shown | ({"remote_host": model.remote_host} if model.remote_host else {}))

    # --- what it does ---------------------------------------------------------------------------------

    async def _generate(self, request: Request, response: Response) -> None:
        body = request.json
        model = self._find(request)
        if model is None:
            await response.whole(404, {"error": f"model '{body['model']}' not found"})
            return
        chat = request.path == "/api/chat"
        empty = not body.get("messages") if chat else not body.get("prompt")
        if empty and body.get("keep_alive") == 0:
            self._expire_when_idle(model)
            await response.whole(200, self._line(model, chat, "", done=True, done_reason="unload"))
            return
        if "completion" not in model.capabilities:
            await response.whole(400, {"error": f'"{model.name}" does not support generate'})
            return
        if body.get("think") and "thinking" not in model.capabilities:
            await response.whole(400, {"error": f'"{model.name}" does not support thinking'})
            return
        if body.get("tools") and "tools" not in model.capabilities:
            await response.whole(400, {"error": f"registry.ollama.ai/library/{model.name} does not support tools"})
            return
        if "vision" not in model.capabilities and any(turn.get("images") for turn in body.get("messages", ())):
            await response.whole(500, {"error": "image input is not supported - hint: provide the mmproj"})
            return
        loaded = await self._schedule(model, body)
        if empty:
            await response.whole(200, self._line(model, chat, "", done=True, done_reason="load"))
            return
        prompt = body["prompt"] if not chat else " ".join(turn["content"] for turn in body["messages"])
        whole = (
            prompt if not chat else body["messages"][-1]["content"]
        )  # what is not cut: older messages are left out
        if len((prompt if body.get("truncate") is False else whole if chat else "").split()) > loaded.num_ctx:
            await response.whole(400, {"error": _too_long(loaded.num_ctx)})
            return
        loaded.users += 1
        try:
            await self._stream(model, body, prompt, chat, response)
        finally:
            loaded.users -= 1
            self._rest(loaded)

    async def _stream(self, model: Model, body: dict[str, Any], prompt: str, chat: bool, response: Response) -> None:
        options = body.get("options", {})
        limit = options.get("num_predict", -1)
        words = self.words if limit < 0 else self.words[:limit]
        await response.begin("application/x-ndjson")
        start = time.monotonic_ns()
        if chat and "thinking" in model.capabilities and body.get("think") is not False:
            for thought in self.thoughts:
                await self._say(response, model, {"thinking": thought})
        if body.get("tools") and body["messages"][-1]["role"] != "tool":
            words = []
            for call in self.calls:
                await self._say(response, model, {"tool_calls": [call]})
        for n, word in enumerate(words):
            if self.midway is not None and self.midway[0] == n:
                await self.midway[1](body, response)
                return
            if self.word_s:
                await asyncio.sleep(self.word_s)
            extra: dict[str, Any] = {}
            if body.get("logprobs"):
                others = [
                    {"token": f"alt{k}", "logprob": -1.5 - k, "bytes": [97]} for k in range(body["top_logprobs"])
                ]
                extra["logprobs"] = [{"token": word, "logprob": -0.5, "bytes": [1], "top_logprobs": others}]
            await response.chunk(msgspec.json.encode(self._line(model, chat, word, done=False, **extra)) + b"\n")
        last = self._line(
            model,
            chat,
            "",
            done=True,
            done_reason="length" if words and 0 <= limit < len(self.words) else "stop",
            total_duration=time.monotonic_ns() - start,
            load_duration=1_000_000,
            prompt_eval_count=len(prompt.split()),
            prompt_eval_duration=2_000_000,
            eval_count=len(words),
            eval_duration=4_000_000,
        )
        await response.chunk(msgspec.json.encode(last) + b"\n")
        await response.end()

    async def _say(self, response: Response, model: Model, said: dict[str, Any]) -> None:
        line = self._line(model, True, "", done=False)
        line["message"] |= said
        await response.chunk(msgspec.json.encode(line) + b"\n")

    def _line(self, model: Model, chat: bool, text: str, **fields: Any) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": text}} if chat else {"response": text}
        return {"model": model.name, "created_at": "2026-01-01T00:00:00Z", **said, **fields}

    async def _embed(self, request: Request, response: Response) -> None:
        body = request.json
        model = self._find(request)
        if model is None:
            await response.whole(404, {"error": f"model '{body['model']}' not found"})
            return
        loaded = await self._schedule(model, body)
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        if body.get("truncate") is False and any(len(text.split()) > loaded.num_ctx for text in texts):
            await response.whole(400, {"error": "the input length exceeds the context length"})
            return
        if texts and "embedding" not in model.capabilities:
            await response.whole(
                501, {"error": "This server does not support embeddings. Start it with `--embeddings`"}
            )
            return
        vectors = [[0.6, 0.8, 0.0, float(n == -1)] for n in range(len(texts))]
        count = sum(len(text.split()) for text in texts)
        await response.whole(200, {"model": model.name, "embeddings": vectors, "prompt_eval_count": count})

    async def _pull(self, request: Request, response: Response) -> None:
        name = request.json["model"]
        await response.begin("application/x-ndjson")
        lines: list[dict[str, Any]] = [{"status": "pulling manifest"}]
        if name.startswith("absent"):
            lines.append({"error": "pull model manifest: file does not exist"})
        else:
            for digest, total in (("sha256:aa", 1000), ("sha256:bb", 200)):
                lines.append({"status": f"pulling {digest}", "digest": digest, "total": total})
                lines += [
                    {"status": f"pulling {digest}", "digest": digest, "total": total, "completed": done}
                    for done in (0, total // 2)
                ]  # nor does it tell of the end
            lines += [{"status": "verifying sha256 digest"}, {"status": "writing manifest"}, {"status": "success"}]
            name = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
            self.models[name.lower()] = Model(name)
        for line in lines:
            await response.chunk(msgspec.json.encode(line) + b"\n")
            await asyncio.sleep(0.06)
        await response.end()

    # --- its memory -----------------------------------------------------------------------------------

    def _find(self, request: Request) -> Model | None:
        return self.models.get(_tagged(request.json["model"]).lower())

    async def _schedule(self, model: Model, body: dict[str, Any]) -> Loaded:
        """Its weights, loaded with these options, by whatever name; other options load them anew."""
        num_ctx = min(body.get("options", {}).get("num_ctx", 4096), model.context_length)
        loaded = self._sharing(model)
        if loaded is None or loaded.num_ctx != num_ctx:
            await asyncio.sleep(model.load_s)
            if loaded is not None:
                self._drop(loaded)
            self.loads += 1
            loaded = self.loaded[model.name] = Loaded(model, num_ctx)
        loaded.keep_s = body.get("keep_alive", 300)
        self._rest(loaded)
        return loaded

    def _rest(self, loaded: Loaded) -> None:
        """Unused from now on: it goes after keep_alive, at once when that is 0, and never when it is below."""
        if loaded.expires is not None:
            loaded.expires.cancel()
            loaded.expires = None
        if loaded.keep_s >= 0 and not loaded.users:
            loaded.expires = asyncio.get_running_loop().call_later(loaded.keep_s, self._drop, loaded)

    def _expire_when_idle(self, model: Model) -> None:
        """One in use goes when it is not any more."""
        if (loaded := self._sharing(model)) is not None:
            loaded.keep_s = 0
            self._rest(loaded)

    def _sharing(self, model: Model) -> Loaded | None:
        return next((one for one in self.loaded.values() if one.model.file == model.file), None)

    def _drop(self, loaded: Loaded) -> None:
        self.loaded = {name: one for name, one in self.loaded.items() if one is not loaded}


def _tagged(name: str) -> str:
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _digest(model: Model) -> str:
    return hashlib.sha256(model.name.encode()).hexdigest()


def _too_long(num_ctx: int) -> str:
    """What the runner answered, as it stands."""
    return msgspec.json.encode(
        {
            "error": {
                "code": 400,
                "message": f"request (9000 tokens) exceeds the available context size ({num_ctx} tokens)",
                "type": "exceed_context_size_error",
                "n_ctx": num_ctx,
            }
        }
    ).decode()
