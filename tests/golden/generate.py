"""Writes the golden frames: `python -m tests.golden.generate`, from the root of the repository.

It adds what is missing and refuses to change what is there: other bytes under an old name would break every binding
written against them. So a change of the protocol's version is needed first, or a case of a new name.
"""

import hashlib
import sys
from pathlib import Path
from typing import Any

import msgspec

from h2qd.wire.limits import PROTOCOL_VERSION
from tests.golden.cases import CASES, REFUSALS

FOLDER = Path(__file__).parent
LOCK = FOLDER / "LOCK"
FILES = ("requests", "replies", "streams", "errors", "refused")


class Entry(msgspec.Struct, omit_defaults=True):
    """One message in a golden file. `view` is what its frames decode to; `code` and `id` tell how it is refused.

    In a view, bytes are an object of one key, `bin`, with their hexadecimal digits.
    """

    name: str
    description: str
    frames: list[str]
    view: dict[str, Any] | None = None
    code: str | None = None
    id: int | None = None


class Golden(msgspec.Struct):
    """A golden file."""

    protocol: int
    messages: list[Entry]


def load(file: str) -> Golden:
    """A golden file as it stands."""
    return msgspec.json.decode((FOLDER / f"{file}.json").read_bytes(), type=Golden)


def viewed(value: Any) -> Any:
    """A decoded message as JSON has it."""
    match value:
        case dict():
            return {key: viewed(each) for key, each in value.items()}
        case list():
            return [viewed(each) for each in value]
        case bytes():
            return {"bin": value.hex()}
    return value


def digest(frames: list[str]) -> str:
    """What the lock keeps of a message."""
    return hashlib.sha256("\n".join(frames).encode()).hexdigest()


def locked() -> tuple[int, dict[str, str]]:
    """The lock: the protocol's version, and a digest for each `file/name`."""
    version, *lines = LOCK.read_text(encoding="utf-8").splitlines()
    return int(version.removeprefix("protocol ")), {
        name: value for value, name in (line.split("  ") for line in lines)
    }


def entries() -> dict[str, list[Entry]]:
    """The golden messages that today's encoder makes, by file."""
    made: dict[str, list[Entry]] = {file: [] for file in FILES}
    for case in CASES:
        envelope, body = (viewed(msgspec.msgpack.decode(frame)) for frame in case.frames)
        frames = [frame.hex() for frame in case.frames]
        made[case.file].append(Entry(case.name, case.description, frames, {"envelope": envelope, "body": body}))
    for refusal in REFUSALS:
        frames = [frame.hex() for frame in refusal.frames]
        made["refused"].append(
            Entry(refusal.name, refusal.description, frames, code=refusal.code, id=refusal.id),
        )
    return made


def main() -> int:
    """Add the missing messages. Exit status 1, and nothing written, when one that is there would change."""
    version, kept = locked() if LOCK.exists() else (PROTOCOL_VERSION, {})
    made = entries()
    fresh = {f"{file}/{entry.name}": digest(entry.frames) for file in FILES for entry in made[file]}
    changed = [
        name for name, value in fresh.items() if version == PROTOCOL_VERSION and kept.get(name, value) != value
    ]
    if changed:
        sys.stderr.write(f"cannot change golden frames within protocol {PROTOCOL_VERSION}: {', '.join(changed)}\n")
        return 1
    same_version = version == PROTOCOL_VERSION
    for file in FILES:
        names = {entry.name for entry in made[file]}
        path = FOLDER / f"{file}.json"
        old = load(file).messages if same_version and path.exists() else []
        golden = Golden(PROTOCOL_VERSION, [*made[file], *(entry for entry in old if entry.name not in names)])
        path.write_bytes(msgspec.json.format(msgspec.json.encode(golden), indent=1) + b"\n")
    lines = [f"{value}  {name}" for name, value in {**(kept if same_version else {}), **fresh}.items()]
    LOCK.write_text("\n".join([f"protocol {PROTOCOL_VERSION}", *lines]) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
