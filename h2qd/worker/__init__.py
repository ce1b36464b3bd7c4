"""The child processes: a zygote that has the imports done, and the workers forked from it, one engine each.

Everything heavy or hostile lives here: native code, model files, large memory. A worker speaks
`h2qd.wire.workers` over one socket, and its exit is the unload. Nothing of the supervisor is imported here.

Reading order: `zygote` (forks and reaps), `process` (what Linux is told about each process), `libraries`
(imports kept small), `loop` (a worker's two threads), `channel`, `engine` (the contract), then the
engines: `llama`, `torch`, `remote` and, for tests, `fake`; `inspect` checks a file; `journal` writes to the daemon's
log. What engines share knows none of them: `prompt` over `chat` over `template` (what a request begins with),
`gbnf` and `schema` (what clients may bind an answer by), `detokenizer` (text that may be shown), `line` (who waits,
who pauses), `pace` (how large a piece of a prompt may be), `threads` (how many at most), `crew` (how many now) over
`neighbour` and `processors`, `heap`.
"""
