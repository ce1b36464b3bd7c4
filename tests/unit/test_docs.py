from pathlib import Path

from tests.docs import ARCHITECTURE, generated

ROOT = Path(__file__).resolve().parents[2]


def test_the_state_diagram_is_the_table() -> None:
    text = ARCHITECTURE.read_text()
    assert "stateDiagram-v2" in text
    assert generated(text) == text


def test_every_module_of_the_code_map_exists_and_every_module_is_on_it() -> None:
    text = ARCHITECTURE.read_text()
    table = text[text.index("| module |") : text.index("Dependencies point one way")]
    modules = [
        path.relative_to(ROOT / "h2qd").with_suffix("").as_posix()
        for package in ("core", "wire", "runtime")
        for path in (ROOT / "h2qd" / package).glob("*.py")
        if path.stem not in ("__init__", "document")
    ]
    missing = [module for module in modules if module.rpartition("/")[2] not in table]
    assert not missing
