"""Two OpenAI-compatible servers that only pretend, in a process of their own: one answers at a pace, one as it can.

    python -m tests.bench.peer_process PACED_WORDS WORD_MS FAST_WORDS

Says their URLs in a line each, and ends with its standard input. Called by `overhead`.
"""

import sys

from tests.peers.openai_server import OpenAIServer


def main() -> None:
    """Serve until standard input ends."""
    paced_words, word_ms, fast_words = sys.argv[1:]
    with OpenAIServer("paced") as paced, OpenAIServer("fast") as fast:
        paced.words = ["word "] * int(paced_words)
        paced.word_s = float(word_ms) / 1000
        fast.words = ["word "] * int(fast_words)
        print(paced.url, flush=True)
        print(fast.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
