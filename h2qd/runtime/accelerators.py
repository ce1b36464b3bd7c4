"""The memory of GPUs, through the driver's own library (NVML), where there is one.

Loaded by ctypes when a device such as /dev/nvidia0 exists, never before: six calls, and a package for them would be
a dependency of every device without such a GPU. It is asked in a thread of its own, since a driver that is busy
takes its time, and one that hangs takes for ever; `read` gives what it said last. A device whose memory is the
machine's (Jetson, GB10) has no memory of its own to report, and is left out: NVML is missing there or says "not
supported". Used by `readings`. Invariant: no error of the driver raises; the device is left out.
"""

import ctypes
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from h2qd.logs import get_logger
from h2qd.wire.names import shown

log = get_logger()

_LIBRARY = "libnvidia-ml.so.1"
_NODE = re.compile(r"nvidia[0-9]+")
_SUCCESS = 0
_DEVICES_MAX = 64
_NAME_BYTES = 96
"""NVML_DEVICE_NAME_V2_BUFFER_SIZE."""

_LOOK_AGAIN_S = 60.0
_ANSWER_S_MAX = 10.0


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """The memory of one device, as its driver counts it: what is reserved for the driver is used."""

    name: str
    total_bytes: int
    used_bytes: int


class Library(Protocol):
    """The part of NVML that is used, with its names, so that a test can stand in for it. Each returns 0 if it could.

    Arguments are ctypes values and references, as the C declarations in nvml.h say.
    """

    def nvmlInit_v2(self) -> int: ...  # noqa: D102, N802 - its names, explained in nvml.h
    def nvmlShutdown(self) -> int: ...  # noqa: D102, N802
    def nvmlDeviceGetCount_v2(self, count: Any, /) -> int: ...  # noqa: D102, N802
    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any, /) -> int: ...  # noqa: D102, N802
    def nvmlDeviceGetName(self, handle: Any, name: Any, size: Any, /) -> int: ...  # noqa: D102, N802
    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any, /) -> int: ...  # noqa: D102, N802


class _Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def load_library() -> Library:
    """The driver's library. Raises OSError where it is not installed."""
    return ctypes.CDLL(_LIBRARY)


class Accelerators:
    """The GPUs of this machine. `trouble` says why there is none although there is a device; "" otherwise."""

    def __init__(self, nodes: Path, load: Callable[[], Library]) -> None:
        self.trouble = ""
        self._nodes = nodes
        self._load = load
        self._devices: tuple[DeviceMemory, ...] = ()
        self._look_at_s = float("-inf")
        self._asked_at_s: float | None = None
        self._asked = threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._closed = False
        self._heard = False

    @classmethod
    def open(cls, root: str = "/", load: Callable[[], Library] = load_library) -> Self:
        """Those of this machine; `root` is put before /dev. Nothing is loaded before the first `read`."""
        return cls(Path(root, "dev"), load)

    def read(self, now_s: float) -> tuple[DeviceMemory, ...]:
        """The memory of each, as of the call before; none when the driver does not answer. Never waits."""
        if self._thread is not None and not self._thread.is_alive():
            self._thread, self._asked_at_s = None, None
        if self._thread is None and not self._start(now_s):
            return ()
        if self._asked_at_s is None:
            self._asked_at_s = now_s
            self._asked.release()
        elif now_s - self._asked_at_s > _ANSWER_S_MAX:
            self.trouble = "the driver of the GPU does not answer"
            return ()
        return self._devices

    @property
    def have_memory(self) -> bool:
        """Whether there is memory of their own, or a driver that may tell of some and was not heard yet."""
        return bool(self._devices) or (self._thread is not None and not self._heard)

    def _start(self, now_s: float) -> bool:
        """Have the driver asked from now on, if there is a device; looked for now and then, as drivers come late."""
        if self._closed or now_s < self._look_at_s:
            return False
        self._look_at_s = now_s + _LOOK_AGAIN_S
        if not _has_node(self._nodes):
            return False
        thread = threading.Thread(target=self._serve, name="accelerators", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system has no room for one
            self.trouble = str(error)
            return False
        self._thread = thread
        return True

    # --- in the thread ------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            library = self._load()
            self._check("nvmlInit_v2", library.nvmlInit_v2())
        except (OSError, AttributeError, _DriverError) as error:
            self._fail(str(error))
            return
        try:
            while self._asked.acquire() and not self._closed:
                self._devices = self._ask(library)
                self._heard, self.trouble = True, ""
                self._asked_at_s = None
        except (AttributeError, _DriverError) as error:
            self._fail(str(error))
        finally:
            library.nvmlShutdown()

    def _fail(self, why: str) -> None:
        if why != self.trouble:
            log.warning("accelerators.unreadable", why=why)
        self._devices, self._heard, self.trouble = (), True, why

    def _ask(self, library: Library) -> tuple[DeviceMemory, ...]:
        count = ctypes.c_uint()
        self._check("nvmlDeviceGetCount_v2", library.nvmlDeviceGetCount_v2(ctypes.byref(count)))
        devices = (_device(library, index) for index in range(min(count.value, _DEVICES_MAX)))
        return tuple(device for device in devices if device is not None)

    @staticmethod
    def _check(call: str, status: int) -> None:
        if status != _SUCCESS:
            raise _DriverError(f"{call} failed with code {status}")

    def close(self) -> None:
        """Ask no more. Does not wait for a driver that is busy."""
        self._closed = True
        self._asked.release()


class _DriverError(Exception):
    """The driver as a whole cannot be asked; it is tried anew later."""


def _device(library: Library, index: int) -> DeviceMemory | None:
    """None for a device that the driver cannot tell about, or that has no memory of its own."""
    handle, memory, name = ctypes.c_void_p(), _Memory(), ctypes.create_string_buffer(_NAME_BYTES)
    if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) != _SUCCESS:
        return None
    if library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) != _SUCCESS or memory.total == 0:
        return None
    if library.nvmlDeviceGetName(handle, name, ctypes.c_uint(_NAME_BYTES)) != _SUCCESS:
        name.value = b"GPU"
    text = shown(name.value.decode("utf-8", "replace"))
    return DeviceMemory(f"{text} #{index}", int(memory.total), min(int(memory.used), int(memory.total)))


def _has_node(folder: Path) -> bool:
    """Whether a device of the driver exists: nvidia0 and up. nvidiactl alone is a driver without a GPU."""
    try:
        return any(_NODE.fullmatch(name) for name in os.listdir(folder))  # noqa: PTH208 - names are enough
    except OSError:
        return False
