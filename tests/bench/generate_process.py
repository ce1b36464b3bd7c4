"""A client whose answers never end: it streams from the model "demo". Ends with its standard input.

`python -m tests.bench.generate_process SOCKET`. Says "begun" at the first token.
"""

import select
import sys

from h2qctl import Client
from tests.bench.setting import prompts

_TOKENS = 3000
"""Of one answer: with the prompt it fits the context."""


def main() -> int:
    """Stream, one answer after the other."""
    with Client(sys.argv[1]) as client:
        for number, prompt in enumerate(prompts()):
            with client.stream(prompt, "demo", max_tokens=_TOKENS, ignore_eos=True, temperature=0) as stream:
                for piece, _ in enumerate(stream):
                    if number == piece == 0:
                        print("begun", flush=True)
                    if select.select([sys.stdin], [], [], 0)[0]:
                        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
