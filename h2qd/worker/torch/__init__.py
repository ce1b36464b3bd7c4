"""The engine that runs model folders (safetensors) on PyTorch: it generates text, and turns texts into vectors.

Reading order: `engine` (the contract) over `generation`, `vectors` and `scoring` (a request, piece by piece);
`model` (load) over `structure` (the modules, without numbers), `weights` (the numbers, part by part) and `linear`
(layers of 8 and 4 bits); `cache`, `vocabulary`, `sampler`; `libraries` and `memory` beside them.

Invariant: no library sees a file that `h2qd.safetensors` has not passed; nothing is unpickled, fetched, or run that
came with a model.
"""
