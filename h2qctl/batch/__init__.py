"""Many prompts over several models, from a file to a file: `h2qctl batch`.

`jobs` reads one line, `source` knows where the lines are and in which order they run, `journal` is the output and
what of it is there already, `runner` asks the daemon with the `patience` that takes, `board` shows how far it is.
Invariant: each line of the input has at most one line in the output, however often the tool or the daemon is killed
and started again.
"""
