"""The engine that runs model folders (safetensors) on PyTorch: it generates text, and turns texts into vectors.

Reading order: `engine` (the contract), `batch` (what is at work, a pass at a time) and `work` (what it asks of each
request), of which there are three kinds: `generation`, `vectors` and `scoring`; `model` (load) over `structure` (the
modules, without numbers), `weights` (the numbers, part by part) and `linear` (layers of 8 and 4 bits); `attention`
(of several requests in one pass) and `cache` (what a slot holds); `seating`, `sessions` and `stored` (where a request
goes on, and conversations on disk); `vocabulary`, `sampler` over `grammar` and `lexicon`; `libraries` and `memory`
beside them.

Invariant: no library sees a file that `h2qd.safetensors` has not passed; nothing is unpickled, fetched, or run that
came with a model.
"""
