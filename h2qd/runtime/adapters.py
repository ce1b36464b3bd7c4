"""The LoRA adapters that the configuration names: where they are, how large, and who may use which.

Their files are looked at once, at start, and only from outside: what is in them is checked by the worker that loads
them, each time. Called by the composition root, and by `commands` and `residents`. Invariant: no request reaches an
engine with an adapter that its model does not have.
"""

import os
from collections.abc import Iterator, Mapping, Sequence

from h2qd.config import Config
from h2qd.core.records import Fault
from h2qd.logs import get_logger
from h2qd.wire.names import shown
from h2qd.wire.workers import AdapterFile, DetokenizeTokens, Task, TokenizeText

log = get_logger()


class Adapters:
    """The adapters of each model, by the model's name."""

    def __init__(self, adapters: Mapping[str, Sequence[AdapterFile]]) -> None:
        self._adapters = {name: list(files) for name, files in adapters.items()}

    @classmethod
    def of(cls, config: Config) -> "Adapters":
        """Those that `config` names. Blocks on the file system; one that cannot be seen is logged, and kept."""
        return cls({name: list(_files(name, model.adapters)) for name, model in config.models.items()})

    def files(self, model: str) -> list[AdapterFile]:
        """What a load of `model` is to load too."""
        return self._adapters.get(model, [])

    def size_bytes(self, model: str) -> int:
        """Of all of them; they are read into memory as they are."""
        return sum(file.size_bytes for file in self.files(model))

    def lack(self, model: str, order: Task) -> Fault | None:
        """Why `model` cannot work on `order`; None: it has all adapters that it names."""
        if isinstance(order, TokenizeText | DetokenizeTokens):  # nothing is computed for them
            return None
        names = [file.name for file in self.files(model)]
        lacking = [name for name in order.adapters if name not in names]
        if not lacking:
            return None
        has = f"it has {', '.join(names)}" if names else "it has none"
        return Fault("invalid_request", f"cannot use the adapter {shown(lacking[0])} with {model}: {has}")


def _files(model: str, adapters: Sequence[tuple[str, str]]) -> Iterator[AdapterFile]:
    for name, path in adapters:
        size_bytes = 0
        try:
            size_bytes = os.stat(path).st_size  # noqa: PTH116 - a path as the configuration gives it
        except OSError as error:
            log.error("adapter.unavailable", model=model, adapter=name, path=path, error=str(error))  # noqa: TRY400 - expected
        yield AdapterFile(name, path, size_bytes)
