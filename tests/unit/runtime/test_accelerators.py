"""GPUs as their driver tells of them: a library of our own, in Python and in C, and this machine's, if it has one."""

import ctypes
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from h2qd.runtime import accelerators
from h2qd.runtime.accelerators import Accelerators, DeviceMemory, Library
from tests.harness import await_true

GIB = 2**30
NOT_SUPPORTED = 3
GPU_IS_LOST = 15
UNKNOWN = 999


class Nvml:
    """A driver. `devices` are (name, total, used), or a code: what it says when it is asked for its memory."""

    def __init__(self, *devices: tuple[bytes, int, int] | int) -> None:
        self.devices = list(devices)
        self.init_code = 0
        self.count_code = 0
        self.asked = 0
        self.shut_down = threading.Event()
        self.answers = threading.Event()
        self.answers.set()

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return self.init_code

    def nvmlShutdown(self) -> int:  # noqa: N802
        self.shut_down.set()
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        self.asked += 1
        self.answers.wait()
        count._obj.value = len(self.devices)
        return self.count_code

    def nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, handle: Any) -> int:  # noqa: N802
        handle._obj.value = 2**47 + index.value
        return GPU_IS_LOST if self.devices[index.value] == GPU_IS_LOST else 0

    def nvmlDeviceGetName(self, handle: ctypes.c_void_p, name: Any, size: ctypes.c_uint) -> int:  # noqa: N802
        device = self.devices[(handle.value or 0) - 2**47]
        assert isinstance(device, tuple)
        assert len(device[0]) < size.value
        name.value = device[0]
        return 0 if device[0] else UNKNOWN

    def nvmlDeviceGetMemoryInfo(self, handle: ctypes.c_void_p, memory: Any) -> int:  # noqa: N802
        device = self.devices[(handle.value or 0) - 2**47]
        if isinstance(device, int):
            return device
        memory._obj.total, memory._obj.used = device[1:]
        return 0


@pytest.fixture
def nodes(tmp_path: Path) -> Path:
    """A root with a device."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    return tmp_path


@pytest.fixture
def opened() -> Iterator[Callable[[Path, Callable[[], Library]], Accelerators]]:
    """Opens, and closes after the test."""
    every: list[Accelerators] = []

    def open_them(root: Path, load: Callable[[], Library]) -> Accelerators:
        every.append(Accelerators.open(str(root), load))
        return every[-1]

    yield open_them
    for each in every:
        each.close()


Open = Callable[[Path, Callable[[], Library]], Accelerators]


def told(them: Accelerators, now_s: float = 0.0) -> tuple[DeviceMemory, ...]:
    """What the driver says to a question of now."""
    them.read(now_s)
    await_true(lambda: them._asked_at_s is None or not them._thread or not them._thread.is_alive(), "an answer")
    them.read(now_s)
    await_true(lambda: them._asked_at_s is None or not them._thread or not them._thread.is_alive(), "an answer")
    return them.read(now_s)


def test_memory_by_device(nodes: Path, opened: Open) -> None:
    library = Nvml((b"NVIDIA RTX A2000", 6 * GIB, GIB), (b"NVIDIA RTX A2000", 6 * GIB, 2 * GIB))
    them = opened(nodes, lambda: library)
    assert told(them) == (
        DeviceMemory("NVIDIA RTX A2000 #0", 6 * GIB, GIB),
        DeviceMemory("NVIDIA RTX A2000 #1", 6 * GIB, 2 * GIB),
    )
    library.devices[0] = (b"NVIDIA RTX A2000", 6 * GIB, 3 * GIB)
    assert told(them, 1.0)[0].used_bytes == 3 * GIB
    assert them.trouble == ""
    assert them.have_memory
    them.close()
    assert library.shut_down.wait(10)


def test_a_device_that_fails_or_shares_the_machines_memory_is_left_out(nodes: Path, opened: Open) -> None:
    library = Nvml(NOT_SUPPORTED, GPU_IS_LOST, (b"empty", 0, 0), (b"RTX", GIB, 5))
    assert told(opened(nodes, lambda: library)) == (DeviceMemory("RTX #3", GIB, 5),)


def test_a_gpu_is_taken_to_have_memory_until_its_driver_was_heard(nodes: Path, opened: Open) -> None:
    library = Nvml(NOT_SUPPORTED)
    library.answers.clear()
    them = opened(nodes, lambda: library)
    before = them.have_memory
    them.read(0.0)
    assert (before, them.have_memory) == (False, True), "looked for, then asked"
    library.answers.set()
    await_true(lambda: not them.have_memory, "the driver was heard")


def test_what_a_driver_says_is_not_trusted(nodes: Path, opened: Open) -> None:
    library = Nvml((b"\x1b[2Jred\xff", GIB, 2**64 - 1), (b"", GIB, 0))
    assert told(opened(nodes, lambda: library)) == (
        DeviceMemory("\\x1b[2Jred\ufffd #0", GIB, GIB),
        DeviceMemory("GPU #1", GIB, 0),
    )
    crowd = Nvml(*[(b"RTX", GIB, 0)] * 1000)
    assert len(told(opened(nodes, lambda: crowd))) == 64


@pytest.mark.parametrize("node", ["", "nvidiactl", "nvidia-uvm", "nvhost-gpu"])
def test_without_a_device_nothing_is_loaded(tmp_path: Path, opened: Open, node: str) -> None:
    if node:
        (tmp_path / "dev").mkdir()
        (tmp_path / "dev" / node).touch()
    loads: list[int] = []

    def load() -> Library:
        loads.append(1)
        return Nvml((b"RTX", GIB, 0))

    them = opened(tmp_path, load)
    threads = threading.active_count()
    assert [them.read(float(second)) for second in range(60)] == [()] * 60
    assert (loads, threading.active_count(), them.trouble) == ([], threads, "")
    (tmp_path / "dev").mkdir(exist_ok=True)
    (tmp_path / "dev/nvidia0").touch()
    assert told(them, 60.0), "drivers come late"


def test_a_library_that_cannot_be_loaded(nodes: Path, opened: Open) -> None:
    def load() -> Library:
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    them = opened(nodes, load)
    assert told(them) == ()
    assert them.trouble == "libnvidia-ml.so.1: cannot open shared object file"


def test_a_library_that_lacks_a_function(nodes: Path, opened: Open) -> None:
    them = opened(nodes, lambda: ctypes.CDLL(None))
    assert told(them) == ()
    assert "nvmlInit_v2" in them.trouble


def test_a_driver_that_fails_is_tried_anew(nodes: Path, opened: Open) -> None:
    library = Nvml((b"RTX", GIB, 5))
    library.init_code = 9
    them = opened(nodes, lambda: library)
    assert told(them) == ()
    assert them.trouble == "nvmlInit_v2 failed with code 9"
    library.init_code = 0
    assert told(them, 59.0) == ()
    assert told(them, 61.0) == (DeviceMemory("RTX #0", GIB, 5),)
    library.count_code = GPU_IS_LOST
    assert told(them, 62.0) == ()
    assert them.trouble == "nvmlDeviceGetCount_v2 failed with code 15"
    library.count_code = 0
    assert told(them, 122.0) == (DeviceMemory("RTX #0", GIB, 5),)
    assert them.trouble == ""


def test_a_driver_that_hangs_holds_up_nobody(nodes: Path, opened: Open) -> None:
    library = Nvml((b"RTX", GIB, 5))
    them = opened(nodes, lambda: library)
    known = (DeviceMemory("RTX #0", GIB, 5),)
    assert told(them) == known
    await_true(lambda: them._asked_at_s is None, "an answer")
    library.answers.clear()
    asked = library.asked
    assert [them.read(second) for second in (100.0, 101.0, 110.0, 110.5)] == [known, known, known, ()]
    assert them.trouble == "the driver of the GPU does not answer"
    assert library.asked <= asked + 1, "it is not asked again before it has answered"
    library.answers.set()
    assert told(them, 111.0) == known
    assert them.trouble == ""


NVML_C = """
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory;
static int device;
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { *handle = &device; return index; }
int nvmlDeviceGetName(void *handle, char *name, unsigned size) {
    if (handle != &device) return 2;
    strncpy(name, "NVIDIA T4G", size);
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *handle, memory *found) {
    if (handle != &device) return 2;
    found->total = 16ull << 30; found->free = 15ull << 30; found->used = 1ull << 30;
    return 0;
}
"""


def test_a_real_library(nodes: Path, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (nodes / "nvml.c").write_text(NVML_C)
    library = nodes / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, nodes / "nvml.c"], check=True)
    monkeypatch.setattr(accelerators, "_LIBRARY", str(library))
    assert told(opened(nodes, accelerators.load_library)) == (DeviceMemory("NVIDIA T4G #0", 16 * GIB, GIB),)


def test_this_machine() -> None:
    them = Accelerators.open()
    has_device = any(Path("/dev").glob("nvidia[0-9]*"))
    found = told(them)
    them.close()
    assert bool(found) <= has_device
    assert all(0 <= device.used_bytes <= device.total_bytes for device in found)
