"""Conversations kept on disk: what a file of one says of itself, and the folder of such files under a quota.

Used by workers, which write and read the files, and by the supervisor, which lists and removes them. Knows nothing of
models, engines or requests.
"""
