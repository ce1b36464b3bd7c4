"""How hot the device is: the hottest of its thermal zones and of its processors' own sensors. Degrees Celsius.

Not every sensor is asked. Chips of main boards report pins that nothing is connected to (127 degrees), the power
controller of a Jetson has a zone of a constant 100 degrees, and a question to a disk or a radio can wake it. A sensor
that is slow to answer is left alone until the sensors are listed again. Used by `readings`, on the event loop.
Invariants: nothing raises; a temperature is within what a device that still runs can have.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from h2qd.runtime.kernel_file import KernelFile

_SENSORS_MAX = 32
_ENTRIES_MAX = 256
_LIST_AGAIN_S = 60.0
_SLOW_S = 0.001
_SLOW_READS_MAX = 3
_SANE_C = (1.0, 125.0)
"""Below: a sensor that is off or has no value yet. Above: none that is still measured by the processor itself."""

_FIXED_ZONES = frozenset({"PMIC-Die"})
_PROCESSOR_CHIPS = frozenset(
    {"coretemp", "k10temp", "k8temp", "zenpower", "via_cputemp", "cpu_thermal", "soc_thermal"}
)


class Thermometer:
    """The sensors under `root`; found anew once a minute, since drivers come late."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._sensors: list[_Sensor] = []
        self._list_at_s = float("-inf")

    def read(self, now_s: float) -> float | None:
        """The temperature now; None where no sensor tells it."""
        if now_s >= self._list_at_s:
            self._list_at_s = now_s + _LIST_AGAIN_S
            self._list()
        known = [degrees for sensor in self._sensors if (degrees := sensor.read()) is not None]
        return max(known, default=None)

    def _list(self) -> None:
        before = {sensor.path: sensor for sensor in self._sensors}
        paths = [path for _, path in zip(range(_SENSORS_MAX), self._found(), strict=False)]
        for path in before.keys() - set(paths):
            before[path].close()
        self._sensors = [before.get(path) or _Sensor(path) for path in paths]
        for sensor in self._sensors:
            sensor.slow_reads = 0

    def _found(self) -> Iterator[Path]:
        for zone in _entries(self._root / "sys/class/thermal"):
            if zone.name.startswith("thermal_zone") and _name(zone / "type") not in _FIXED_ZONES:
                yield zone / "temp"
        for chip in _entries(self._root / "sys/class/hwmon"):
            if _name(chip / "name") in _PROCESSOR_CHIPS:
                inputs = (file for file in _entries(chip) if file.name.startswith("temp"))
                yield from (file for file in inputs if file.name.endswith("_input"))

    def close(self) -> None:
        """Let go of all sensors."""
        for sensor in self._sensors:
            sensor.close()


class _Sensor:
    """One sensor, in thousandths of a degree."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.slow_reads = 0
        self._file = KernelFile(path)
        self.close = self._file.close

    def read(self) -> float | None:
        if self.slow_reads >= _SLOW_READS_MAX:
            return None
        began_s = time.perf_counter()
        text = (self._file.text() or "").strip()
        slow = time.perf_counter() - began_s > _SLOW_S
        self.slow_reads = self.slow_reads + 1 if slow else 0  # in a row: one alone may be the scheduler's doing
        if not (text.isascii() and text.isdigit() and len(text) <= 6):
            return None
        degrees = int(text) / 1000
        return degrees if _SANE_C[0] <= degrees <= _SANE_C[1] else None


def _entries(folder: Path) -> list[Path]:
    """What is in `folder`, in order of name; nothing when it cannot be read."""
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        names = [entry.name for _, entry in zip(range(_ENTRIES_MAX), found, strict=False)]
        return [folder / name for name in sorted(names)]
    return []


def _name(path: Path) -> str:
    file = KernelFile(path)
    name = file.text() or ""
    file.close()
    return name.strip()
