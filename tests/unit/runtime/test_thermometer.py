"""Temperatures from sensors of our own making; of this machine, whatever it has."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from h2qd.runtime.thermometer import Thermometer
from tests.unit.runtime.kernel_tree import Tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def thermometer(tree: Tree) -> Iterator[Thermometer]:
    thermometer = Thermometer(Path(tree.root))
    yield thermometer
    thermometer.close()


def zone(tree: Tree, number: int, kind: str, temp: str) -> None:
    tree.write(f"sys/class/thermal/thermal_zone{number}/type", f"{kind}\n")
    tree.write(f"sys/class/thermal/thermal_zone{number}/temp", f"{temp}\n")


def chip(tree: Tree, number: int, name: str, *temps: str) -> None:
    tree.write(f"sys/class/hwmon/hwmon{number}/name", f"{name}\n")
    for index, temp in enumerate(temps, start=1):
        tree.write(f"sys/class/hwmon/hwmon{number}/temp{index}_input", f"{temp}\n")


def test_no_sensor(thermometer: Thermometer) -> None:
    assert thermometer.read(0.0) is None


def test_the_hottest_counts(tree: Tree, thermometer: Thermometer) -> None:
    zone(tree, 0, "cpu-thermal", "48312")
    zone(tree, 1, "gpu-thermal", "51000")
    chip(tree, 0, "coretemp", "47000", "63500")
    tree.write("sys/class/hwmon/hwmon0/temp1_crit", "100000\n")
    tree.write("sys/class/thermal/cooling_device0/temp", "99000\n")
    assert thermometer.read(0.0) == 63.5
    chip(tree, 0, "coretemp", "47000", "49000")
    assert thermometer.read(1.0) == 51.0


@pytest.mark.parametrize("temp", ["0", "-40000", "127000", "999999999", "", "hot", "٣٣٠٠٠", "33.5"])
def test_a_temperature_that_cannot_be(tree: Tree, thermometer: Thermometer, temp: str) -> None:
    zone(tree, 0, "cpu-thermal", temp)
    assert thermometer.read(0.0) is None
    zone(tree, 1, "cpu-thermal", "40000")
    assert thermometer.read(60.0) == 40.0


def test_sensors_that_measure_no_processor_are_not_asked(tree: Tree, thermometer: Thermometer) -> None:
    zone(tree, 0, "PMIC-Die", "100000")
    chip(tree, 0, "nct6775", "90000")
    chip(tree, 1, "drivetemp", "91000")
    assert thermometer.read(0.0) is None


def test_sensors_that_come_and_go(tree: Tree, thermometer: Thermometer) -> None:
    zone(tree, 0, "cpu-thermal", "40000")
    assert thermometer.read(0.0) == 40.0
    chip(tree, 0, "k10temp", "70000")
    assert thermometer.read(59.0) == 40.0
    assert thermometer.read(60.0) == 70.0
    for file in Path(tree.root, "sys/class/hwmon/hwmon0").iterdir():
        file.unlink()
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert thermometer.read(120.0) == 40.0
    assert len(list(Path("/proc/self/fd").iterdir())) == before - 1, (
        "the file of the sensor that is gone is given back"
    )


def test_a_slow_sensor_is_left_alone_for_a_while(
    tree: Tree, thermometer: Thermometer, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone(tree, 0, "cpu-thermal", "40000")
    chip(tree, 0, "coretemp", "60000")
    clock = {"s": 0.0}
    slow = Path(tree.root, "sys/class/hwmon/hwmon0/temp1_input")
    asked = []
    pread = os.pread

    def slow_pread(fd: int, size: int, offset: int) -> bytes:
        if Path(f"/proc/self/fd/{fd}").readlink() == slow and offset == 0:
            asked.append(clock["s"])
            clock["s"] += 0.02
        return pread(fd, size, offset)

    monkeypatch.setattr("h2qd.runtime.kernel_file.os.pread", slow_pread)
    monkeypatch.setattr("h2qd.runtime.thermometer.time.perf_counter", lambda: clock["s"])
    assert [thermometer.read(float(second)) for second in range(6)] == [60.0, 60.0, 60.0, 40.0, 40.0, 40.0]
    assert len(asked) == 3
    assert thermometer.read(60.0) == 60.0


def test_this_machine() -> None:
    thermometer = Thermometer(Path("/"))
    degrees = thermometer.read(0.0)
    thermometer.close()
    assert degrees is None or 0 < degrees <= 125
