"""GGUF model files, read without trust: everything is checked here before native code sees the file.

Reading order: `window` (bytes, bounded), `tensor_types` and `header` (the shapes), `reader` (the header's grammar),
`keys` (metadata in bounds), `layers` (what each layer keeps), `facts` (what the file says of the model), `repack`
(what the engine copies), `adapters` (what may be added to a model). Called by workers only.
"""
