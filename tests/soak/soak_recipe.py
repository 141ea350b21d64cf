"""A recipe with every stage, small enough to be killed hundreds of times; every figure but times is reproducible."""

from pathlib import Path
from typing import Any

import yaml

from tests.conftest import make_teacher, tiny_recipe


def soak_recipe(teacher: Path, *, steps: int = 12, save_every: int = 3) -> dict[str, Any]:
    """Return the tests' tiny recipe with published costs and trainings long enough to be hit in the middle."""
    recipe = tiny_recipe(teacher)
    longer = {"steps": steps, "save_every": save_every}
    recipe["name"] = "soak"
    recipe["h1"]["schedule"] = [1, 2]
    recipe["h1"]["distill"] |= longer
    recipe["h1"]["sft"]["step"] = 2
    recipe["h1"]["sft"]["train"] |= longer
    recipe["supernet"]["train"] |= longer
    # Measured ones would lead the search elsewhere on each run.
    recipe["costs"] = {"table": "published"}
    recipe["search"] |= {"budgets": [0.6, 0.4], "allocations": {}, "max_candidates": 9}
    recipe["evals"] |= {"tasks": ["recall"]}
    recipe["evals"]["throughput"]["contexts"] = [16]
    recipe["release"]["names"] = {0.6: "turbo"}
    recipe["release"]["sft"] |= longer
    return recipe


def write_soak_recipe(directory: Path, **lengths: int) -> Path:
    """Write teacher and recipe; return the recipe's file."""
    teacher = make_teacher(directory / "teacher", num_layers=3)
    path = directory / "soak.yaml"
    path.write_text(yaml.safe_dump(soak_recipe(teacher, **lengths)))
    return path
