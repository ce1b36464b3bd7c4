"""Keeps a CPU busy until it is killed, at the latest with its parent. `python -m tests.bench.spin_process PARENT`."""

import hashlib
import sys

from h2qd.worker.process import die_with_parent

if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    block = bytes(4096)
    while True:
        hashlib.sha256(block).digest()
