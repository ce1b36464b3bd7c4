"""From file, environment and options to a Config: precedence, sources, and every mistake at once."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from h2qd.config import Config, ConfigError, document, load_config, reader
from h2qd.config.kinds import Users
from h2qd.config.schema import KEYS, Model
from h2qd.config.table import Table
from h2qd.config.units import Amount
from h2qd.wire.catalogue import Access
from h2qd.wire.messages import ConfigValue

EDGE = Path(__file__).parents[3] / "configs" / "edge.yaml"
Write = Callable[[str], str]
LAB = "remotes: {lab: {type: ollama, url: 'http://h'"


@pytest.fixture(autouse=True)
def _no_system_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reader, "DEFAULT_FILE", str(tmp_path / "absent.yaml"))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(text: str) -> str:
        path = tmp_path / "h2qd.yaml"
        path.write_text(text)
        return str(path)

    return to_file


def faults(
    path: str | None, environ: dict[str, str] | None = None, options: dict[str, str] | None = None
) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ or {}, options or {})
    assert str(caught.value).splitlines() == [str(fault) for fault in caught.value.faults]
    return [str(fault) for fault in caught.value.faults]


def value(config: Config, key: str) -> ConfigValue:
    return next(row for row in config.values() if row.key == key)


# --- what is in force -------------------------------------------------------------------------------


def test_without_anything_all_is_default() -> None:
    config = load_config(None, {}, {})
    assert config.file == ""
    assert {row.source for row in config.values()} == {"default"}
    assert [row.key for row in config.values()] == list(KEYS)
    assert config.requests.queue_max == 64
    assert config.residency.patience_s == 2.0
    assert config.memory.model_limit == Amount(percent=80)
    assert config.socket.mode == 0o660


def test_the_file_speaks_every_kind(write: Write) -> None:
    config = load_config(
        write(
            "socket: {path: run/s.sock, mode: 0600}\n"
            "access: {admin: [root, 7], use: ['*']}\n"
            "residency: {patience: 1500ms, restore: false}\n"
            "memory:\n  model_limit: 2GiB\n  safety_buffer: 1000\n"
            "worker: {nice: -5}\n"
            "models:\n  a/b:1: {path: ../m.gguf, ctx: 128, adapters: [polite=p.gguf, b=/b=c]}\n"
            "  fake.1: {path: /x, backend: fake}\n"
        ),
        {},
        {},
    )
    folder = Path(config.file).parent
    assert config.socket.path == str(folder / "run/s.sock")
    assert config.socket.mode == 0o600
    assert config.access.admin == Users(("root", "7"), frozenset({0, 7}))
    assert config.residency.patience_s == 1.5
    assert config.residency.restore is False
    assert config.memory.model_limit == Amount(size_bytes=2**31)
    assert config.memory.safety_buffer_bytes == 1000
    assert config.worker.nice == -5
    assert config.models == {
        "a/b:1": Model(
            path=str(folder / "../m.gguf"), ctx=128, adapters=(("polite", str(folder / "p.gguf")), ("b", "/b=c"))
        ),
        "fake.1": Model(path="/x", backend="fake"),
    }
    assert value(config, "models.a/b:1.ctx") == ConfigValue("models.a/b:1.ctx", 128, "h2qd.yaml:9")
    assert value(config, "models.fake.1.ctx") == ConfigValue("models.fake.1.ctx", None, "default")
    assert value(config, "models.a/b:1.adapters").value == [f"polite={folder}/p.gguf", "b=/b=c"]
    assert value(config, "socket.mode") == ConfigValue("socket.mode", "0600", "h2qd.yaml:1")
    assert value(config, "access.admin") == ConfigValue("access.admin", ["root", "7"], "h2qd.yaml:2")


def test_later_sources_win_and_say_so(write: Write) -> None:
    file = write("socket: {path: /file.sock}\nstate_dir: /file\nlog: {level: error}\n")
    config = load_config(
        file,
        {"H2Q_SOCKET": "/variable.sock", "H2Q_STATE_DIR": "/variable", "H2Q_LOG_LEVEL": ""},
        {"--socket": "/option.sock"},
    )
    assert value(config, "socket.path") == ConfigValue("socket.path", "/option.sock", "--socket")
    assert value(config, "state_dir") == ConfigValue("state_dir", "/variable", "H2Q_STATE_DIR")
    assert value(config, "log.level") == ConfigValue("log.level", "error", "h2qd.yaml:3")


def test_which_file_is_read(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_option = write("log: {level: error}")
    by_variable, by_default = tmp_path / "v.yaml", tmp_path / "d.yaml"
    by_variable.write_text("log: {level: warning}")
    by_default.write_text("log: {level: debug}")
    assert load_config(None, {}, {}).log.level == "info"
    monkeypatch.setattr(reader, "DEFAULT_FILE", str(by_default))
    assert load_config(None, {}, {}).log.level == "debug"
    assert load_config(None, {"H2Q_CONFIG": str(by_variable)}, {}).log.level == "warning"
    assert load_config(by_option, {"H2Q_CONFIG": str(by_variable)}, {}).log.level == "error"


def test_relative_paths_of_options_start_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(None, {}, {"--socket": "a.sock"}).socket.path == str(tmp_path / "a.sock")


def test_the_values_in_force_can_be_written_back(write: Write) -> None:
    first = load_config(str(EDGE), {}, {})
    lines: list[str] = []
    for row in first.values():
        section, _, name = row.key.rpartition(".")
        shown = str(row.value).lower() if isinstance(row.value, bool) else row.value
        lines.append(f"{section}: {{{name}: {shown}}}" if section else f"{name}: {shown}")
    # One file a key: the same section twice would be refused.
    for line in lines:
        again = load_config(write(line), {}, {})
        key = next(key for key, source in again.sources.items() if source != "default")
        assert value(again, key).value == value(first, key).value


def test_a_model_of_a_server_has_settings_and_no_file(write: Write) -> None:
    models = "models: {'lab/llama3.2:3b': {ctx: 512, ttl: 1m, fallback: [lab/small]}}"
    remotes = "remotes: {lab: {type: ollama, url: 'http://h', aliases: {small: 'hf.co/Org/Small:Q4', big: Big}}}"
    for text in (f"{models}\n{remotes}", f"{remotes}\n{models}"):
        config = load_config(write(text), {}, {})
        assert config.models["lab/llama3.2:3b"] == Model(ctx=512, ttl_s=60.0, fallback=("lab/small",))
        assert config.remotes["lab"].aliases == (("small", "hf.co/Org/Small:Q4"), ("big", "Big"))
        assert value(config, "remotes.lab.aliases").value == ["small=hf.co/Org/Small:Q4", "big=Big"]


# --- mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("sokcet: {}", ":1: sokcet: cannot use an unknown key: did you mean socket?"),
        ("\nsocket:\n  pth: /x", ":3: socket.pth: cannot use an unknown key: did you mean socket.path?"),
        ("queue_max: 3", ":1: queue_max: cannot use an unknown key: did you mean requests.queue_max?"),
        ("zzzz: 3", ":1: zzzz: cannot use an unknown key: known here are access, failures,"),
        ("socket.path: /x", ":1: socket.path: cannot use a dotted key"),
        ("requests: {queue_max: many}", "requests.queue_max: cannot use 'many': it must be a whole number from 1 to"),
        ("requests: {queue_max: 0}", "requests.queue_max: cannot use '0': it must be a whole number from 1 to 10000"),
        ("requests: {queue_max: 1_0}", "cannot use '1_0'"),
        ("requests: {queue_max: [1]}", "requests.queue_max: cannot use a list: it must be a whole number"),
        ("requests: {queue_max: {a: 1}}", "requests.queue_max: cannot use a map: it must be a whole number"),
        ("access: {use: [*x, root]}", "access.use[0]: cannot use the alias *x"),
        ("requests: {queue_max: }", "requests.queue_max: cannot use an empty value"),
        ("requests: 5", ":1: requests: cannot use '5': it must be a map of keys"),
        ("requests: [a]", ":1: requests: cannot use a list: it must be a map of keys"),
        ("requests: {deadline: 10}", "requests.deadline: cannot use '10': it must be a duration such as"),
        ("requests: {deadline: 25h}", "cannot use '25h': it must be a duration from 10ms to 24h"),
        ("residency: {restore: yes}", "residency.restore: cannot use 'yes': it must be true or false"),
        ("residency: {policy: all}", "residency.policy: cannot use 'all': it must be exclusive or budget"),
        ("socket: {mode: 0999}", "socket.mode: cannot use '0999': it must be permission bits in octal"),
        ("socket: {path: ''}", "socket.path: cannot use ''"),
        ("socket: {path: /" + "x" * 100 + "}", "the path has 101 bytes, at most 100"),
        ('socket: {path: "/a\\0b"}', "it holds a NUL character"),
        ('state_dir: "/\\ud800"', "state_dir: cannot use '/\\ud800': it is no text that a file system could hold"),
        ("guard: {warn: 95%}", "guard.warn: cannot use '95%': guard.critical is 90%, and must be more"),
        ("guard: {warn: 0.8}", "guard.warn: cannot use '0.8': it must be a percentage from 10% to 99%"),
        (
            "models: {a: {path: b, variants: c}}",
            "models.a.variants: cannot use 'c': it must be a list of model names",
        ),
        ("models: {a: {path: b, variants: [C]}}", "models.a.variants: cannot use 'C': "),
        ("models: {a: {path: b, variants: [a]}}", "models.a.variants: cannot use 'a': it is the model itself"),
        ("models: {a: {path: b, adapters: [c]}}", "models.a.adapters: cannot use 'c': it must be name=path"),
        ("models: {a: {path: b, adapters: ['=c']}}", "cannot use '=c': its name must be of at most 64 letters"),
        ("models: {a: {path: b, adapters: [c=]}}", "cannot use 'c=': it is empty"),
        ("models: {a: {path: b, adapters: [c=d, c=e]}}", "models.a.adapters: cannot use two adapters of one name"),
        (
            "models: {a: {path: b, adapters: [" + ", ".join(f"a{n}=b" for n in range(9)) + "]}}",
            "models.a.adapters: cannot use 9 adapters: at most 8",
        ),
        ("memory: {max: 120%}", "memory.max: cannot use '120%': a share must be from 1% to 100%"),
        ("memory: {model_limit: 5}", "it must be at least 1MiB"),
        ("memory: {safety_buffer: 2TiB}", "it must be at most 1TiB"),
        ("access: {use: root}", "access.use: cannot use 'root': it must be a list of user names"),
        (
            "access:\n  use:\n  - root\n  - no such",
            ":4: access.use: cannot use 'no such': no user of this name exists",
        ),
        ("access: {use: [[a]]}", "access.use: cannot use a list: it must be a user name or uid"),
        ("access: {use: [4294967295]}", "a uid is from 0 to 4294967294"),
        ('access: {use: ["a\\0b"]}', "no user of this name exists"),
        ("models: [a]", ":1: models: cannot use a list: it must be a map of models"),
        ("models: {A: {path: x}}", "models.A: cannot use this name for a model: it may hold only"),
        ("models: {../a: {path: x}}", "cannot use this name for a model"),
        ("models: {a: x}", "models.a: cannot use 'x': it must be a map with a path"),
        ("models:\n  a: {ctx: 64}", ":2: models.a.path: cannot do without this key"),
        ("models: {a: {path: x, pat: y}}", "models.a.pat: cannot use an unknown key: did you mean models.a.path?"),
        ("models: {a: {path: x, ctx: 1}}", "models.a.ctx: cannot use '1': it must be a whole number from 64"),
        (
            "models: {a: {path: x, backend: tensorflow}}",
            "models.a.backend: cannot use 'tensorflow': it must be llama or torch or fake",
        ),
        (
            "models: {" + ", ".join(f"m{n}: {{path: x}}" for n in range(257)) + "}",
            "cannot use 257 models: at most 256",
        ),
        ("failures: {backoff_first: 1m}", "failures.backoff_first: cannot use '1m': failures.backoff_max is 30s"),
        ("failures: {backoff_max: 10ms}", "failures.backoff_first: cannot use '500ms': failures.backoff_max is 10ms"),
        ("worker: {ping_interval: 1m}", "worker.ping_interval: cannot use '1m': worker.stall_timeout is 1m"),
        (f"{LAB}, aliases: [a]}}}}", "remotes.lab.aliases: cannot use a list: it must be a map of names to names"),
        (f"{LAB}, aliases: a}}}}", "remotes.lab.aliases: cannot use 'a': it must be a map of names to names"),
        (f"{LAB}, aliases: {{A: b}}}}}}", "remotes.lab.aliases.A: cannot use this name for a model"),
        (f"{LAB}, aliases: {{a: ''}}}}}}", "remotes.lab.aliases.a: cannot use '': it must be printable"),
        (f"{LAB}, aliases: {{a: [b]}}}}}}", "remotes.lab.aliases.a: cannot use a list: it must be a name"),
        (f"{LAB}, aliases: {{a: c, b: 'C:latest'}}}}}}", "remotes.lab.aliases: cannot use two aliases of one model"),
        ("remotes: {a/b: {type: ollama, url: 'http://h'}}", "remotes.a/b: cannot use this name for a remote"),
        (
            f"models: {{lab/a: {{path: x}}}}\n{LAB}}}}}",
            ":1: models.lab/a.path: cannot use it for a model of the remote",
        ),
        (f"{LAB}}}}}\nmodels: {{lab/a: {{kv_type: f16}}}}", ":2: models.lab/a.kv_type: cannot use it for a model of"),
        ("models: {lab/a: {ctx: 64}}", "models.lab/a.path: cannot do without this key"),
        ("<<: {}", "<<: cannot use an unknown key"),
    ],
)
def test_a_mistake_is_named_with_its_key_line_and_value(write: Write, text: str, fault: str) -> None:
    found = faults(write(text))
    assert len(found) == 1
    assert fault in found[0]
    assert "h2qd.yaml:" in found[0]


def test_all_mistakes_come_together(write: Write) -> None:
    file = write(
        "log: {level: loud, levle: info}\n"
        "worker:\n  nice: 99\n  nice: 1\n  threads: *x\n"
        "models: {a: {}}\n"
        "failures: {backoff_max: 10ms}\n"
    )
    found = faults(file, {"H2Q_LOG_LEVEL": "louder"}, {"--sokcet": "/x"})
    keys = [text.split(": ")[1] for text in found]
    assert sorted(keys) == sorted(
        [
            "worker.nice",
            "worker.nice",
            "worker.threads",
            "log.level",
            "log.levle",
            "models.a.path",
            "failures.backoff_first",
            "log.level",
            "cannot use an unknown option",
        ]
    )
    assert any(text.startswith("H2Q_LOG_LEVEL: log.level: cannot use 'louder'") for text in found)
    assert any(text.endswith("did you mean --socket?") for text in found)


def test_very_many_mistakes_are_not_all_said(write: Write) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write("\n".join(f"k{n}: 1" for n in range(200))), {}, {})
    assert len(caught.value.faults) == 200
    assert str(caught.value).endswith("\nand 150 more")


def test_hostile_text_is_escaped(write: Write) -> None:
    (found,) = faults(write('log: {level: "\\e[31m\\u202ered"}'))
    assert found.isprintable()
    assert "\\x1b[31m\\u202ered" in found


def test_unknown_variables_are_warnings() -> None:
    config = load_config(None, {"H2Q_SOCKTE": "/x", "H2QX": "1", "PATH": "/bin"}, {})
    assert config.warnings == ("the variable H2Q_SOCKTE is not read: did you mean H2Q_SOCKET?",)


def test_a_file_that_everybody_can_write_is_a_warning(write: Write) -> None:
    file = write("log: {level: info}")
    assert load_config(file, {}, {}).warnings == ()
    Path(file).chmod(0o646)
    assert load_config(file, {}, {}).warnings == (f"{file} can be written by every user of this machine",)


@pytest.mark.parametrize("name", ["absent.yaml", "folder", "fifo", "zero", "a\0b", "\ud800"])
def test_what_is_no_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (found,) = faults(f"{tmp_path}/{name}")
    assert "cannot read the configuration: " in found


def test_a_runtime_directory_that_is_too_long_is_told() -> None:
    (found,) = faults(None, {"RUNTIME_DIRECTORY": "/" + "x" * 100})
    assert found.startswith("default: socket.path: cannot use")


@given(st.dictionaries(st.text(max_size=8), st.one_of(st.none(), st.integers(), st.text(max_size=8)), max_size=4))
def test_any_flat_file_is_a_config_or_an_error(entries: dict[str, object]) -> None:
    text = "".join(f"{key!r}: {item!r}\n" for key, item in entries.items())
    table = Table("f.yaml")
    top, found = document.parse(text.encode("utf-8", "replace"), "f.yaml")
    table.read(top)
    assert set(table.values) <= set(KEYS)
    assert table.faults or found or set(entries) <= {"state_dir", "models", *(key.split(".")[0] for key in KEYS)}


# --- access -----------------------------------------------------------------------------------------


def test_access_levels(write: Write) -> None:
    access = load_config(write("access: {admin: [1], use: [2], read: ['*']}"), {}, {}).access
    assert access.level(0, 500) == Access.ADMIN
    assert access.level(500, 500) == Access.ADMIN
    assert access.level(1, 500) == Access.ADMIN
    assert access.level(2, 500) == Access.USE
    assert access.level(3, 500) == Access.READ


def test_nobody_else_has_access_by_default() -> None:
    access = load_config(None, {}, {}).access
    assert access.level(1000, 500) is None
