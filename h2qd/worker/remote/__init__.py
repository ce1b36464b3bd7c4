"""Engines that hold no weights: models that a server runs, an Ollama or any that speaks OpenAI's API.

Reading order: `engine` (the contract) over `talk` (a thread with an asyncio loop, where all talking is done);
`ollama` (with `ollama_answers`, `weights`) and `openai` (what is asked of a server and what its answers mean; their
contract is `dialect`, what they say of a text goes through `reply` and `calls`, conversations and tools become theirs
in `turns`) over `server` (`pace`, `retry`) over `transport` (TLS, proxy, pool, timeouts) and `address` (whom it may
connect to); `ndjson` and `sse` take streams apart, `pieces` bounds the time between two parts; `errors` and
`diagnosis` turn whatever went wrong into a public code, `secret` keeps the key out of all of it.

Invariant: this is the only place of h2qd that opens an internet socket; what a server says is bounded in size, depth
and time before it is believed, and the key is in no text.
"""
