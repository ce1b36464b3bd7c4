"""Writes the generated parts of ARCHITECTURE.md; `tests/unit/test_docs.py` compares. `python -m tests.docs`."""

import re
from pathlib import Path

from h2qd.core.states import mermaid

ARCHITECTURE = Path(__file__).resolve().parent.parent / "h2qd" / "ARCHITECTURE.md"


def generated(text: str) -> str:
    """`text` with its generated parts as they should be."""
    block = f"<!-- generated: states -->\n```mermaid\n{mermaid()}```\n<!-- end -->"
    return re.sub(r"<!-- generated: states -->.*?<!-- end -->", lambda _: block, text, flags=re.DOTALL)


if __name__ == "__main__":
    ARCHITECTURE.write_text(generated(ARCHITECTURE.read_text()))
