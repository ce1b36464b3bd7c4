"""What servers on this device hold, and what of it is not ours; and how they are to be asked for it."""

from dataclasses import replace

import pytest

from h2qd.config.schema import Remote
from h2qd.core.plan import ModelShape
from h2qd.core.records import Model
from h2qd.core.states import Status
from h2qd.runtime.elsewhere import Elsewhere
from h2qd.runtime.targets import Targets, shares_memory
from h2qd.store.registry import Manifest
from h2qd.wire.messages import ModelFacts
from h2qd.wire.workers import RunningModel

HERE = "http://127.0.0.1:11434"


def manifest(name: str, path: str) -> Manifest:
    remote = name.partition("/")[0]
    return Manifest(
        name=name,
        path=path,
        backend="ollama",
        sha256="",
        identity=[],
        facts=ModelFacts("ollama"),
        imported_at_ms=0,
        remote=remote,
    )


def test_what_is_not_resident_here_is_foreign() -> None:
    models = {"box/a": Model("box/a", ModelShape(), 0), "local": Model("local", ModelShape(), 0, status=Status.READY)}
    elsewhere = Elsewhere({"box/a": manifest("box/a", "a")}, lambda: models)
    assert elsewhere.foreign_bytes() == {}
    elsewhere.heard("box", [RunningModel("A:latest", 5), RunningModel("b:latest", 3)])
    elsewhere.heard("far", [RunningModel("a:latest", 2)])
    assert elsewhere.foreign_bytes() == {"box": 8, "far": 2}
    models["box/a"] = replace(models["box/a"], status=Status.READY)
    assert elsewhere.foreign_bytes() == {"box": 3, "far": 2}, "of the same name, but at another server"
    elsewhere.heard("box", [RunningModel("a:latest", 5)])
    elsewhere.heard("far", ())
    assert elsewhere.foreign_bytes() == {}
    models["box/a"] = replace(models["box/a"], status=Status.COLD)
    assert elsewhere.foreign_bytes() == {"box": 5}, "it went from here, and stayed there"


@pytest.mark.parametrize(
    ("setting", "gpu_has_memory", "counted"),
    [
        ("auto", True, False),
        ("auto", False, True),
        ("own", False, False),
        ("device", True, True),
    ],
)
def test_whose_memory_a_gpu_takes(setting: str, counted: bool, *, gpu_has_memory: bool) -> None:
    remote = Remote(type="ollama", url=HERE, gpu_memory=setting)
    assert Targets({"box": remote}, lambda: gpu_has_memory).of("box").gpu_shares_memory is counted


def test_a_sandbox_that_hides_addresses_leaves_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden() -> None:
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr("psutil.net_if_addrs", hidden)
    assert shares_memory(Remote(type="ollama", url=HERE))
    assert not shares_memory(Remote(type="ollama", url="http://192.0.2.1:11434"))


@pytest.mark.parametrize(
    ("kind", "url", "setting", "shares"),
    [
        ("ollama", HERE, "auto", True),
        ("ollama", "http://localhost:11434", "auto", True),
        ("ollama", "http://[::1]:11434", "auto", True),
        ("ollama", "http://192.0.2.1:11434", "auto", False),
        ("ollama", "http://192.0.2.1:11434", "true", True),
        ("ollama", HERE, "false", False),
        ("openai", HERE, "auto", False),
    ],
)
def test_whose_memory_a_server_takes(kind: str, url: str, setting: str, *, shares: bool) -> None:
    assert shares_memory(Remote(type=kind, url=url, shares_memory=setting)) is shares
