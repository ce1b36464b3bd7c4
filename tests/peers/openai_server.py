"""OpenAI's public API as a peer: models, chats, completions, embeddings, with streams of server-sent events.

`style` gives it the habits of a kind: `openai` refuses unknown fields, `llama.cpp` and `vllm` take theirs.
The real things to test against are in test_remote_openai_server and test_remote_llama_server.
"""

import asyncio
import time
from typing import Any

import msgspec

from tests.peers.http_server import HttpServer, Request, Response

_FIELDS = {
    "model",
    "messages",
    "prompt",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "response_format",
    "tools",
    "tool_choice",
    "reasoning_effort",
}


class OpenAIServer(HttpServer):
    """`words` are an answer's pieces. `refuses` maps fields to the error that they are refused with.

    `thoughts` come first, in deltas of the field `thinks_in`; `calls` come instead of words where tools are given and
    no outcome of one is the last message: each is the pieces of a delta's `tool_calls`, one delta a piece.
    """

    def __init__(self, *models: str, key: str = "", style: str = "openai", **options: Any) -> None:
        super().__init__(**options)
        self.models = list(models) or ["small"]
        self.key = key
        self.style = style
        self.words = ["tok0 ", "tok1 ", "tok2 ", "tok3 "]
        self.word_s = 0.0
        self.refuses: dict[str, dict[str, Any]] = {}
        self.thoughts: list[str] = []
        self.thinks_in = "reasoning_content"
        self.calls: list[dict[str, Any]] = []
        self.midway: tuple[int, Any] | None = None
        self.usage: dict[str, Any] | None = {
            "prompt_tokens": 7,
            "completion_tokens": 4,
            "prompt_tokens_details": {"cached_tokens": 3},
        }

    @property
    def url(self) -> str:
        return f"{super().url}/v1"

    async def handle(self, request: Request, response: Response) -> None:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            quoted = request.headers.get("authorization", "").removeprefix("Bearer ")
            await self._refuse(response, 401, f"Incorrect API key provided: {quoted}.", code="invalid_api_key")
            return
        handler = {
            ("GET", "/v1/models"): self._models,
            ("POST", "/v1/chat/completions"): self._generate,
            ("POST", "/v1/completions"): self._generate,
            ("POST", "/v1/embeddings"): self._embed,
        }.get((request.method, request.path))
        if handler is None:
            await self._refuse(response, 404, "Unknown request URL")
        else:
            await handler(request, response)

    async def _refuse(self, response: Response, status: int, message: str, **fields: Any) -> None:
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None, **fields}
        await response.whole(status, {"error": error})

    async def _models(self, _: Request, response: Response) -> None:
        data = [{"id": name, "object": "model", "created": 1, "owned_by": "me"} for name in self.models]
        if self.style == "vllm":
            data = [{**one, "max_model_len": 512} for one in data]
        await response.whole(200, {"object": "list", "data": data})

    async def _generate(self, request: Request, response: Response) -> None:
        body = request.json
        if body["model"] not in self.models:
            await self._refuse(response, 404, f"The model `{body['model']}` does not exist", code="model_not_found")
            return
        for name, error in self.refuses.items():
            if name in body:
                await self._refuse(response, 400, **error)
                return
        if self.style == "openai" and (unknown := set(body) - _FIELDS):
            name = min(unknown)
            await self._refuse(response, 400, f"Unrecognized request argument supplied: {name}", param=name)
            return
        await self._stream(request.path.endswith("/chat/completions"), body, response)

    async def _stream(self, chat: bool, body: dict[str, Any], response: Response) -> None:
        await response.begin("text/event-stream; charset=utf-8")
        await response.chunk(b": PROCESSING\n\n")
        began_s = time.monotonic()
        limit = body.get("max_tokens") or body.get("max_completion_tokens") or len(self.words)
        if chat:
            await self._event(response, chat, "", None, {"role": "assistant", "content": None})
            for thought in self.thoughts:
                await self._event(response, chat, "", None, {self.thinks_in: thought})
        if chat and self.calls and body.get("tools") and body["messages"][-1]["role"] != "tool":
            for piece in self.calls:
                await self._event(response, chat, "", None, {"tool_calls": [piece]})
            await self._finish(response, chat, body, "tool_calls")
            return
        for n, word in enumerate(self.words[:limit]):
            if self.midway is not None and self.midway[0] == n:
                await self.midway[1](body, response)
                return
            if self.word_s:  # a pace, whatever the words before took
                await asyncio.sleep(max(0.0, began_s + (n + 1) * self.word_s - time.monotonic()))
            await self._event(response, chat, word, None, {}, self._logprobs(chat, body, word))
        await self._finish(response, chat, body, "length" if limit < len(self.words) else "stop")

    async def _finish(self, response: Response, chat: bool, body: dict[str, Any], why: str) -> None:
        await self._event(response, chat, "", why, {})
        if body.get("stream_options", {}).get("include_usage") and self.usage is not None:
            await response.chunk(b"data: " + msgspec.json.encode({"choices": [], "usage": self.usage}) + b"\n\n")
        await response.chunk(b"data: [DONE]\n\n")
        await response.end()

    async def _event(
        self,
        response: Response,
        chat: bool,
        text: str,
        finish: str | None,
        extra: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
    ) -> None:
        said: dict[str, Any] = {"delta": {**extra, **({"content": text} if text else {})}} if chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": logprobs, "finish_reason": finish}
        event = {"id": "x", "object": "chunk", "created": 1, "model": "small", "choices": [choice], "usage": None}
        await response.chunk(b"data: " + msgspec.json.encode(event) + b"\n\n")

    def _logprobs(self, chat: bool, body: dict[str, Any], word: str) -> dict[str, Any] | None:
        if not body.get("logprobs") and body.get("logprobs") != 0:
            return None
        if chat:
            top = [
                {"token": f"alt{k}", "logprob": -1.5 - k, "bytes": None} for k in range(body.get("top_logprobs", 0))
            ]
            return {"content": [{"token": word, "logprob": -0.5, "bytes": [1], "top_logprobs": top}]}
        top_values = {f"alt{k}": -1.5 - k for k in range(body["logprobs"])}
        return {"tokens": [word], "token_logprobs": [-0.5], "top_logprobs": [top_values], "text_offset": [0]}

    async def _embed(self, request: Request, response: Response) -> None:
        texts = request.json["input"]
        data = [{"object": "embedding", "index": n, "embedding": [3.0, 4.0, float(n)]} for n in range(len(texts))]
        usage = {"prompt_tokens": 5, "total_tokens": 5}
        await response.whole(200, {"object": "list", "data": data[::-1], "model": "small", "usage": usage})
