"""The engine that runs GGUF models on this device with llama.cpp, through its C interface.

Reading order: `engine` (the contract), `batch` (what is at work, a pass at a time) and `work` (what it asks of each
request), of which there are three kinds: `slot` (an answer, from prompt to end), `scoring` (how likely a text is) and
`vectors` (of texts), both over `reading`; all over `model` (load and free), `context` (what the KV cache holds),
`vocabulary`, and for answers `sampler` over `candidates`, `logprobs`, `drafts` (guesses from the text so far) and
`draft_model` over `wager` (guesses by a smaller model). What `batch` asks: `seating` (where a request goes on:
`placement` among caches, `sessions` in the cache and on disk), `shares` (who takes part in a pass); `overflow` (what
stays of a text that outgrows the context). `encoder` takes the batch's place for models made for vectors. For what
clients may add: `grammar`; `log` beside them. What is not about this library lies one folder up.

Invariant: native code sees no file that `h2qd.gguf` or `h2qd.sessions` has not passed, no text of a client but as
bytes to tokenize, and no grammar but one written here from a checked tree.
"""

import os

# Read when the library is loaded: its abort would otherwise start a debugger on this process.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")
