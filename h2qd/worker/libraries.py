"""The imports that every worker shares, done once in the zygote and kept small. Called by `zygote` only.

`import llama_cpp` also imports a high-level class that workers never use, and for it a disk cache that
pickles, SQLite and chat formats: 3 MB, here and on every small device. So the package is entered into
`sys.modules` without running its own file, with the names of the C binding in it, as that file has them.
Importing runs no OpenMP region and starts no thread: a fork later would lose them.
"""

import gc
import importlib
import importlib.util
import os
import platform
import re
import sys
from pathlib import Path

from h2qd.worker import journal

_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",  # numpy's own thread pool would not survive the fork, and is not needed
    "GGML_NO_BACKTRACE": "1",  # ggml's abort would otherwise start a debugger
}

_VERSION = re.compile(r"""^__version__\s*=\s*["']([^"']+)["']""", re.MULTILINE)


def preload(*, remotes: bool = False) -> dict[str, str]:
    """Import what engines need; the versions of what is there, by distribution name. `remotes`: HTTP and TLS, too.

    Those are 7 MB here, once, and 7 MB less in each worker that speaks to a server, which begins 150 ms earlier.
    A library that is missing or broken is told to the log and left out: a load that needs it says so.
    """
    os.environ.update(_ENVIRONMENT)
    versions = {"python": platform.python_version()}
    try:
        binding = _import_binding()
        importlib.import_module("h2qd.worker.llama.engine")
        versions["llama-cpp-python"] = binding
    except Exception as error:  # noqa: BLE001 - whatever a third party's import throws, other engines go on
        journal.record("zygote.import_failed", error)
    if remotes:
        try:
            importlib.import_module("h2qd.worker.remote.engine")
            versions["httpcore2"] = sys.modules["httpcore2"].__version__
        except Exception as error:  # noqa: BLE001 - as above
            journal.record("zygote.import_failed", error)
    if numpy := sys.modules.get("numpy"):
        versions["numpy"] = numpy.__version__
    gc.collect()
    gc.freeze()  # collections in workers leave these pages alone, so they stay shared
    return versions


def _import_binding() -> str:
    """Import `llama_cpp.llama_cpp` and stand in for the package around it; its version."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("llama-cpp-python is not installed", name="llama_cpp")
    package = importlib.util.module_from_spec(spec)  # made, not run
    sys.modules[spec.name] = package
    try:
        binding = importlib.import_module("llama_cpp.llama_cpp")
    except BaseException:
        del sys.modules[spec.name]  # a later import tells the same error, not one of a half package
        raise
    package.__dict__.update({name: value for name, value in vars(binding).items() if not name.startswith("_")})
    found = _VERSION.search(Path(spec.origin).read_text(encoding="utf-8"))
    version = found.group(1) if found else "unknown"
    package.__dict__["__version__"] = version
    return version
