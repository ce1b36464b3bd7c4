"""Scripts may stand in for models in this process."""

import pytest


@pytest.fixture(autouse=True)
def _fake_engine_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("H2Q_TEST", "1")
