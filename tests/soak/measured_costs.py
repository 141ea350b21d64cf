"""What an undisturbed run would have made of the costs that a disturbed one measured.

Measured costs lead a search, and no two measurements are alike: two runs of a recipe that measures are the same only
up to there. So the disturbed run's costs are handed to an undisturbed one, which builds anew all that follows.
"""

import json
import os
import shutil
from pathlib import Path

COSTS = "costs"


def measures_costs(home: Path) -> bool:
    """Tell whether a run has measured costs, so that another run's search may go elsewhere."""
    return (home / "artifacts" / COSTS).is_dir()


def with_costs_of(undisturbed: Path, disturbed: Path, target: Path) -> Path:
    """Make a home of an undisturbed run's artifacts, but for what is made from costs, and a disturbed run's costs.

    Files are linked, not copied. Return the home, to be run to its end.
    """
    follow = made_from_costs(undisturbed)
    for provenance in sorted((undisturbed / "artifacts").rglob("provenance.json")):
        place = provenance.parent.relative_to(undisturbed)
        if _asset(undisturbed, provenance) not in follow:
            shutil.copytree(undisturbed / place, target / place, copy_function=os.link)
    shutil.copytree(disturbed / "artifacts" / COSTS, target / "artifacts" / COSTS, copy_function=os.link)
    return target


def made_from_costs(home: Path) -> set[str]:
    """Return the assets of a home that are measured costs, or made from them, directly or not."""
    inputs: dict[str, set[str]] = {}
    for path in (home / "artifacts").rglob("provenance.json"):
        own = {name.partition("@")[0] for name in json.loads(path.read_text())["inputs"]}
        inputs.setdefault(_asset(home, path), set()).update(own)
    found = {asset for asset in inputs if asset.startswith(f"{COSTS}/")}
    while more := {asset for asset, own in inputs.items() if asset not in found and own & found}:
        found |= more
    return found


def _asset(home: Path, provenance: Path) -> str:
    return str(provenance.parent.parent.relative_to(home / "artifacts"))
