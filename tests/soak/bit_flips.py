"""Flip one bit of a random file of a home, over and over: does `apriel verify` tell, and which file it is?

    python -m tests.soak.bit_flips --home HOME --flips 1000

Works on a copy of the home. Every flip must be told, or be in a file that `resources/verification.py` says is not
covered: those are counted apart.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from resources.verification import NOT_COVERED, verify_home

RESULTS = Path(__file__).parent.parent.parent / "benchmarks" / "results" / "soak_bit_flips.json"


def is_covered(home: Path, path: Path) -> bool:
    """Tell whether a flip in this file must be told."""
    return not any(path.relative_to(home).match(pattern) for pattern in NOT_COVERED)


def flip(path: Path, lot: random.Random) -> tuple[int, int]:
    """Flip one bit of a file, at an offset that has its place in it; return byte and bit."""
    content = bytearray(path.read_bytes())
    place = lot.randrange(len(content)), lot.randrange(8)
    content[place[0]] ^= 1 << place[1]
    with path.open("r+b") as file:  # in place, as a disk would: same inode
        file.write(content)
    return place


def is_told(home: Path, path: Path) -> bool:
    """Tell whether verification names this file, or the artifact or training state that it is part of."""
    from apriel_assets.errors import UserError

    try:
        damage = verify_home(home).damage
    except UserError as error:  # a newer format, say
        return str(path.relative_to(home)).startswith("artifacts") and "format" in str(error)
    return any(path.is_relative_to(home / own.path) for own in damage)


def flip_bits(home: Path, flips: int, seed: int) -> dict[str, Any]:
    """Flip bits of a home, one at a time, each taken back after; return what was told.

    Every file has the same chance, whatever its size.
    """
    lot, told, untold, missed = random.Random(seed), Counter(), Counter(), []
    for _ in range(flips):
        # Listed anew: what says when a damaged artifact's large files were last hashed is removed with the first flip.
        path = lot.choice(sorted(path for path in home.rglob("*") if path.is_file() and path.stat().st_size))
        before = path.read_bytes()
        place = flip(path, lot)
        family = path.relative_to(home).parts[0]
        if is_told(home, path):
            told[family] += 1
        elif is_covered(home, path):
            missed.append(f"{path.relative_to(home)} byte {place[0]} bit {place[1]}")
        else:
            untold[family] += 1
        path.write_bytes(before)
    return {"flips": flips, "told": dict(told), "not_covered": dict(untold), "missed": missed}


def main() -> int:
    """Flip, write the result file; 1 if one was missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = shutil.copytree(given.home, Path(scratch) / "home")
        report = {
            "command": f"python -m tests.soak.bit_flips --home HOME --flips {given.flips} --seed {given.seed}",
            "files": sum(path.is_file() for path in home.rglob("*")),
            "damage_before": [own.path for own in verify_home(home).damage],
            **flip_bits(home, given.flips, given.seed),
        }
    given.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return 1 if report["missed"] or report["damage_before"] else 0


if __name__ == "__main__":
    sys.exit(main())
