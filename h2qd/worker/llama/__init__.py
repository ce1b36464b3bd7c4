"""The engine that runs GGUF models on this device with llama.cpp, through its C interface.

Reading order: `engine` (the contract), `batch` (what is at work, a pass at a time) and `slot` (one request, from
prompt to end) over `model` (load and free), `context` (what the KV cache holds), `vocabulary`, `sampler`,
`detokenizer`; what `batch` asks: `placement` (which slot), `shares` (who takes part in a pass), `pace` (how large it
may be); for what clients may add: `grammar` over `gbnf` and `schema`, and `chat` over `template`; `threads` (how many
at most), `crew` (how many now) over `neighbour` and `processors`, and `log` beside them.

Invariant: native code sees no file that `h2qd.gguf` has not passed, no text of a client but as bytes to
tokenize, and no grammar but one written here from a checked tree.
"""

import os

# Read when the library is loaded: its abort would otherwise start a debugger on this process.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")
