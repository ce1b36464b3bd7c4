"""Lines of OpenAI's batch files, as lines of ours. Pure.

Only what means the same here is taken; what would be silently ignored is refused. Raises ValueError.
"""

from typing import Any

import msgspec

_RENAMED = {"max_completion_tokens": "max_tokens"}
_AS_IT_IS = frozenset({"model", "max_tokens", "temperature", "top_p", "seed", "stop", "logit_bias", "tools"})
_MEANS_NOTHING: dict[str, object] = {
    "stream": False,
    "n": 1,
    "encoding_format": "float",
    "user": None,
    "metadata": None,
    "store": None,
}
"""Keys that may be there: with this value, or with any where that is None."""

_SUBJECTS = {
    "/v1/chat/completions": ("messages", "messages"),
    "/v1/completions": ("prompt", "prompt"),
    "/v1/embeddings": ("input", "texts"),
}


def translated(fields: dict[str, Any]) -> dict[str, Any]:
    """`custom_id`, `method`, `url` and `body` as one object of ours."""
    unknown = fields.keys() - {"custom_id", "method", "url", "body"}
    if unknown:
        raise ValueError(f"it has the unknown key `{min(unknown)}` beside `custom_id`, `method`, `url` and `body`")
    url, body = fields.get("url"), fields.get("body")
    if fields.get("method", "POST") != "POST" or not isinstance(url, str) or url not in _SUBJECTS:
        raise ValueError(f"it must POST to one of {', '.join(_SUBJECTS)}")
    if not isinstance(body, dict):
        raise ValueError("its `body` is no object")  # noqa: TRY004  # one kind of error for one kind of mistake
    theirs, ours = _SUBJECTS[url]
    job: dict[str, Any] = {"id": fields.get("custom_id")}
    said: dict[str, Any] = body
    for key, value in said.items():
        if key == theirs:
            job[ours] = _subject(ours, value)
        elif key in _AS_IT_IS or key in _RENAMED:
            job[_RENAMED.get(key, key)] = value
        elif key in _TRANSLATED:
            job.update(_TRANSLATED[key](value))
        elif key not in ("logprobs", "top_logprobs") and not (
            key in _MEANS_NOTHING and _MEANS_NOTHING[key] in (None, value)
        ):
            raise ValueError(f"`{key}` cannot be followed here")
    if asked := said.get("logprobs"):
        job["logprobs"] = said.get("top_logprobs", 0 if asked is True else asked)
    return job


def _subject(ours: str, said: Any) -> Any:
    if ours == "texts" and isinstance(said, str):
        return [said]
    return list(map(_message, said)) if ours == "messages" and isinstance(said, list) else said


def _message(said: Any) -> Any:
    """A message with its images as base64 and its calls as ours; what is none is for the wire's types to refuse."""
    if not isinstance(said, dict):
        return said
    message = dict(said)
    parts = message.get("content")
    if isinstance(parts, list):
        message["content"] = "".join(part["text"] for part in parts if _type(part) == "text")
        message["images"] = [_image(part) for part in parts if _type(part) != "text"]
    elif parts is None and message.get("tool_calls"):
        message["content"] = ""
    if isinstance(message.get("tool_calls"), list):
        message["tool_calls"] = list(map(_call, message["tool_calls"]))
    return message


def _call(said: Any) -> Any:
    match said:
        case {"id": str(call_id), "function": {"name": str(name), "arguments": str(arguments)}}:
            return {"id": call_id, "name": name, "arguments": arguments}
    return said


def _type(part: Any) -> str:
    match part:
        case {"type": "text", "text": str()}:
            return "text"
        case {"type": "image_url"}:
            return "image_url"
    raise ValueError("a part of `content` is neither a text nor an image_url")


def _image(part: dict[str, Any]) -> str:
    """The base64 of a data URL: nothing is fetched from elsewhere."""
    match part["image_url"]:
        case {"url": str(url)} if url.startswith("data:image/"):
            _, comma, data = url.partition(";base64,")
            if comma:
                return data
    raise ValueError("an `image_url` is no data URL with base64")


def _choice(said: object) -> dict[str, Any]:
    """`tool_choice` as ours, where a tool is meant by its name."""
    match said:
        case {"type": "function", "function": {"name": str(name)}}:
            return {"tool_choice": name}
    return {"tool_choice": said}


def _effort(said: object) -> dict[str, Any]:
    """`reasoning_effort` as `think`."""
    if said in ("low", "medium", "high"):
        return {"think": said}
    if said == "none":
        return {"think": False}
    raise ValueError("`reasoning_effort` is none of none, low, medium and high")


def _format(said: object) -> dict[str, Any]:
    """`response_format` as a `json_schema` of ours."""
    match said:
        case {"type": "text"}:
            return {}
        case {"type": "json_object"}:
            return {"json_schema": '{"type":"object"}'}
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return {"json_schema": msgspec.json.encode(schema).decode()}
    raise ValueError("`response_format` is neither text, json_object nor a json_schema")


_TRANSLATED = {"response_format": _format, "tool_choice": _choice, "reasoning_effort": _effort}
"""Keys that have another name or form here."""
