"""What the README promises: the main job on a real model, and a list of verbs that is complete."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.model
def test_make_run_does_the_main_job_and_leaves_nothing_running() -> None:
    before = {process.pid for process in psutil.process_iter()}
    done = subprocess.run(
        [sys.executable, "-m", "tests.demo", "--prompt", "The capital of France is", "--max-tokens", "16"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The capital of France is")
    figures = re.search(
        r"load ([\d.]+) s \| first token \d+ ms \| ([\d.]+) tokens/s \| memory held (\d+) MiB \| after unload 0 MiB"
        r" \((\d+) of (\d+) MiB back in ([\d.]+) s\)",
        done.stderr,
    )
    assert figures is not None, done.stderr
    assert int(figures[4]) >= 0.99 * int(figures[5]) > 100
    left = [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if process.pid not in before and "h2qd" in " ".join(process.info["cmdline"] or [])
    ]
    assert not left


def test_the_readme_lists_every_verb() -> None:
    table = README[README.index("| verb |") : README.index("Every verb takes")]
    verbs = {path.stem.strip("_") for path in (ROOT / "h2qctl" / "verbs").glob("*.py")} - {"", "init"}
    assert not {verb for verb in verbs if not re.search(rf"`{verb}[ `]", table)}
