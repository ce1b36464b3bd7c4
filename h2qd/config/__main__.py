"""Prints the table of configuration keys: `python -m h2qd.config > configs/README.md`."""

import sys

from h2qd.config.reference import reference

sys.stdout.write(reference())
