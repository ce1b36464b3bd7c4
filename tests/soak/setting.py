"""Daemons to soak: one with a scripted model, one with the real, bundled one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.harness import DaemonProcess, running, started
from tests.pressure import MIB, model

QUIET = {"H2Q_LOG_LEVEL": "warning"}
MODEL = "m"


@contextmanager
def scripted(folder: Path) -> Iterator[DaemonProcess]:
    """A daemon whose model takes a little real memory, and no time."""
    with running(folder, {MODEL: model(16 * MIB, tokens=3)}, environment=QUIET) as daemon:
        yield daemon


@contextmanager
def real(folder: Path, path: Path) -> Iterator[DaemonProcess]:
    """A daemon with the model file at `path`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "h2qd.yaml"
    config.write_text(f"models:\n  {MODEL}: {{path: {path}, ctx: 512}}\n")
    with started(folder, config, QUIET) as daemon:
        yield daemon
