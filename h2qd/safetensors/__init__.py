"""Model folders as Hugging Face lays them out, read by a bounded reader of our own: the standard library and JSON.

Reading order: `header` (one .safetensors file), `document` (a JSON file), `families` (what of it is run), `folder`
(which files make a model, and what is refused), `facts`. Nothing here computes with a tensor, and nothing unpickles.
"""
