"""Lines of OpenAI's batch files, as lines of ours. Pure.

Only what means the same here is taken; what would be silently ignored is refused. Raises ValueError.
"""

from typing import Any

import msgspec

_RENAMED = {"max_completion_tokens": "max_tokens"}
_AS_IT_IS = frozenset({"model", "max_tokens", "temperature", "top_p", "seed", "stop", "logit_bias"})
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
            job[ours] = [value] if ours == "texts" and isinstance(value, str) else value
        elif key in _AS_IT_IS or key in _RENAMED:
            job[_RENAMED.get(key, key)] = value
        elif key == "response_format":
            job.update(_format(value))
        elif key not in ("logprobs", "top_logprobs") and not (
            key in _MEANS_NOTHING and _MEANS_NOTHING[key] in (None, value)
        ):
            raise ValueError(f"`{key}` cannot be followed here")
    if asked := said.get("logprobs"):
        job["logprobs"] = said.get("top_logprobs", 0 if asked is True else asked)
    return job


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
