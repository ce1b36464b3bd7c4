"""`h2qctl` and `python -m h2qctl`: nothing but the promise that no interrupt ever ends in a traceback.

Everything else is imported inside that promise, by name, since importing is most of what a quick verb does.
"""

import sys
from importlib import import_module

_INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Run the tool on `argv` (this process's own by default); the exit status of `h2qd.wire.codes`."""
    try:
        status: int = import_module("h2qctl.terminal").run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        return _INTERRUPTED
    return status


if __name__ == "__main__":
    sys.exit(main())
