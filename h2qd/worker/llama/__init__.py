"""The engine that runs GGUF models on this device with llama.cpp, through its C interface.

Reading order: `engine` (the contract), `batch` (what is at work, a pass at a time) and `work` (what it asks of each
request), of which there are three kinds: `slot` (an answer, from prompt to end), `scoring` (how likely a text is) and
`vectors` (of texts); all over `model` (load and free), `context` (what the KV cache holds), `vocabulary`, and for
answers `sampler`, `detokenizer`, `logprobs`, `drafts` (guesses what follows). What `batch` asks: `placement` (which
slot), `shares` (who takes part in a pass), `pace` (how large it may be). `encoder` takes its place for models made
for vectors. For what clients may add: `grammar` over `gbnf` and `schema`, and `chat` over `template`; `threads` and
`log` beside them.

Invariant: native code sees no file that `h2qd.gguf` has not passed, no text of a client but as bytes to
tokenize, and no grammar but one written here from a checked tree.
"""

import os

# Read when the library is loaded: its abort would otherwise start a debugger on this process.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")
