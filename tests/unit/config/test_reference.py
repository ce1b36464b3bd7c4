"""The files that describe the keys say what the schema says; the unit leaves time for what they allow."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from h2qd.config import load_config, reader
from h2qd.config.reference import reference
from h2qd.config.schema import KEYS, MODEL_KEYS, REMOTE_KEYS, Settings

ROOT = Path(__file__).parents[3]
EDGE = ROOT / "configs" / "edge.yaml"
UNIT = ROOT / "systemd" / "h2qd.service"


def test_the_readme_is_what_the_schema_prints() -> None:
    assert (ROOT / "configs" / "README.md").read_text() == reference(), "python -m h2qd.config > configs/README.md"


def test_the_module_prints_the_page() -> None:
    command = [sys.executable, "-m", "h2qd.config"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == reference()


def test_edge_yaml_holds_the_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reader, "DEFAULT_FILE", str(tmp_path / "absent.yaml"))
    defaults = {row.key: row.value for row in load_config(None, {}, {}).values()}
    given = [row for row in load_config(str(EDGE), {}, {}).values() if row.source != "default"]
    assert {row.key: row.value for row in given} == {row.key: defaults[row.key] for row in given}
    assert {row.key for row in given} == set(KEYS) - {"socket.path", "state_dir"}, "those two depend on the place"


def test_edge_yaml_mentions_every_key_in_its_section() -> None:
    section, mentioned = "", set()
    for line in EDGE.read_text().splitlines():
        match = re.fullmatch(r"( *)(?:# ?)*( *)([a-z_0-9]+):( .*)?", line)
        if match and not match[1] and not line.startswith("#"):
            section = match[3]
        if match:
            mentioned |= {match[3], f"{section}.{match[3]}"}
    assert set(KEYS) <= mentioned
    assert {f"models.{key}" for key in MODEL_KEYS} <= mentioned
    assert {f"remotes.{key}" for key in REMOTE_KEYS} <= mentioned


def test_edge_yaml_is_valid_with_its_examples_uncommented(tmp_path: Path) -> None:
    text = re.sub(r"^( *)# (path:|state_dir:)", r"\1\2", EDGE.read_text(), flags=re.MULTILINE)
    text = re.sub(r"^  # (gemma3:|lab:|  [a-z]+(?:_[a-z]+)?: .*)$", r"  \1", text, flags=re.MULTILINE)
    (tmp_path / "h2qd.yaml").write_text(text)
    config = load_config(str(tmp_path / "h2qd.yaml"), {}, {})
    assert config.models["gemma3"].ctx == 8192
    assert config.state_dir == "/var/lib/h2qd"
    either_or = "remotes.lab.key_credential"
    assert "default" not in {row.source for row in config.values() if row.key != either_or}


def test_every_key_has_a_meaning() -> None:
    for key, spec in {**KEYS, **MODEL_KEYS, **REMOTE_KEYS}.items():
        assert spec.meaning, key
        assert spec.kind.words, key
    assert all(
        section.__doc__ for section in (Settings, *Settings.__annotations__.values()) if isinstance(section, type)
    )


# --- the unit ---------------------------------------------------------------------------------------


def unit_values(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), flags=re.MULTILINE)


def test_the_unit_waits_for_drain_and_stop_ladder() -> None:
    config = load_config(str(EDGE), {}, {})
    (timeout_s,) = unit_values("TimeoutStopSec")
    margin_s = 5
    assert int(timeout_s) >= config.shutdown.drain_s + 2 * config.worker.stop_grace_s + margin_s


def test_the_unit_reads_the_default_file_and_its_own_folders() -> None:
    (command,) = unit_values("ExecStart")
    assert command.endswith(f"--config {reader.DEFAULT_FILE}")
    assert unit_values("RuntimeDirectory") == ["h2qd"]
    assert unit_values("StateDirectory") == ["h2qd"]
    assert unit_values("KillMode") == ["mixed"], "SIGTERM to the workers would cut off what is to be drained"


def test_the_unit_lets_workers_speak_to_servers_and_the_daemon_know_its_own_addresses() -> None:
    (families,) = unit_values("RestrictAddressFamilies")
    assert set(families.split()) == {"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"}


def test_the_unit_does_not_try_again_what_a_configuration_says_wrong() -> None:
    (status,) = unit_values("RestartPreventExitStatus")
    done = subprocess.run(
        [sys.executable, "-m", "h2qd", "--config", "/nonexistent.yaml"], capture_output=True, check=False, timeout=60
    )
    assert done.returncode == int(status)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_the_unit() -> None:
    command = ["systemd-analyze", "verify", "--man=no", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    about_it = [line for line in done.stderr.splitlines() if "h2qd" in line]
    assert (done.returncode, about_it) == (0, [])


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="needs systemd-sysusers")
def test_systemd_accepts_the_users() -> None:
    command = ["systemd-sysusers", "--dry-run", str(ROOT / "systemd" / "h2qd.sysusers")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
