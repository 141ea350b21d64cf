"""How long exact enumeration and exact arrangement take at the published size: 50 layers, 5 mixers.

    python benchmarks/allocations.py

Writes benchmarks/results/allocations.json. Target: enumerating under a budget, Pareto filter included, <= 2 s.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from apriel_assets.search.allocations import enumerate_allocations
from apriel_assets.search.config import AllocationConfig
from apriel_assets.search.costs import PUBLISHED, CostTable
from apriel_assets.search.space import SearchSpace
from resources.provenance import code_revision, device_name, library_versions

# The published table has no Mamba; any cost will do for a timing.
COSTS = CostTable(name="benchmark", per_mixer={**PUBLISHED["published"], "mamba": 0.10})
NUM_LAYERS, BUDGETS, REPEATS = 50, (0.454, 0.3, 0.15), 5
TARGET_SECONDS = 2.0


def least_seconds(work: Callable[[], Any], repeats: int = REPEATS) -> tuple[Any, dict[str, float]]:
    """Return the result, and the least times on the wall and of the process: other work disturbs these least."""
    wall, cpu = [], []
    for _ in range(repeats):
        began, cpu_began = time.perf_counter(), time.process_time()
        result = work()
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - cpu_began)
    return result, {"seconds": min(wall), "cpu_seconds": min(cpu)}


def main() -> None:
    available = [tuple(COSTS.mixers)] * NUM_LAYERS
    rows = []
    for budget in BUDGETS:
        found, seconds = least_seconds(lambda budget=budget: enumerate_allocations(COSTS, budget, available))
        rows.append(
            {
                "budget": budget,
                "allocations": len(found),
                "pareto": sum(allocation.pareto for allocation in found),
                **seconds,
            }
        )
        print(rows[-1])
    rng = np.random.default_rng(0)
    values = rng.normal(size=(NUM_LAYERS, len(COSTS.mixers)))
    pairs = rng.normal(size=(NUM_LAYERS - 1, len(COSTS.mixers), len(COSTS.mixers)))
    # The surrogate's step: the best placement of every allocation of a narrow budget, all pairs considered.
    narrow = AllocationConfig(minimum={"fa": 12}, maximum={"kda": 6, "mamba": 4})
    allocations = enumerate_allocations(COSTS, 0.5, available, narrow)
    space = SearchSpace(allocations, COSTS, available, narrow)
    _, arrange_seconds = least_seconds(lambda: space.arrange(values, pairs), repeats=2)
    report = {
        "num_layers": NUM_LAYERS,
        "num_mixers": len(COSTS.mixers),
        "enumeration": rows,
        "target_seconds": TARGET_SECONDS,
        "arrangement": {"allocations": len(space.counts), **arrange_seconds},
        "device": device_name(),
        "versions": library_versions(),
        "code_revision": code_revision(),
    }
    path = Path(__file__).parent / "results" / "allocations.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(report["arrangement"])


if __name__ == "__main__":
    main()
