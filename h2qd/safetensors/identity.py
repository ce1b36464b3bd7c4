"""What tells that a model on disk is still the very one that was checked: a file, or a folder of files.

Called off the loop by the supervisor, and by workers. Invariant: another file in the place of one that makes the
model, or one more or less of them, is another identity.
"""

import hashlib
import os
from pathlib import Path

from h2qd.gguf.reader import identity as identity_of_file
from h2qd.safetensors.folder import files_of


def identity_of(path: str) -> list[int]:
    """Of a file: device, inode, size and mtime in ns. Of a folder: device, inode, the sizes' sum, a digest of all.

    Raises `SafetensorsError` for a folder that is too large to be a model, OSError.
    """
    status = os.stat(path)  # noqa: PTH116 - a path as the wire gives it
    if not os.path.isdir(path):  # noqa: PTH112 - the same
        return identity_of_file(status)
    digest = hashlib.sha256()
    total = 0
    for name in files_of(Path(path)):
        found = identity_of_file(os.stat(os.path.join(path, name)))  # noqa: PTH116, PTH118 - the same
        total += found[2]
        digest.update(f"{name}\0{found}\n".encode("utf-8", "surrogateescape"))
    return [status.st_dev, status.st_ino, total, int.from_bytes(digest.digest()[:6], "big")]
