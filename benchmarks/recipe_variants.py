"""Do the published lessons hold at quickstart scale? The recipe's variants against the recipe, several seeds.

    python benchmarks/recipe_variants.py --home /tmp/lessons --seeds 0 1 2

Each seed is a run of the recipe under another name in one home, so teacher and tokenizer are shared; `apriel run
--variants` makes what the variants need and nothing else. Writes benchmarks/results/recipe_variants.json: every
comparison over all tasks, by seed and over seeds, with the paired interval of `apriel compare`. Runs continue where
they were cut.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from apriel_assets.comparing import compare_models
from apriel_assets.evaluation.comparison import OVERALL
from apriel_assets.recipe import load_recipe
from resources.lake import Lake
from resources.provenance import code_revision, library_versions

# Beside each variant against its base: stages alone, the order being the same.
FURTHER = [("one_shot/h9", "static_order/h9")]


def name_of(recipe: str, seed: int) -> str:
    """Return what a recipe is called under a seed."""
    return f"{recipe}-s{seed}"


def run_seed(home: Path, recipe: str, seed: int, variants: list[str], threads: int) -> None:
    """Bring the variants of one seed up to date."""
    command = [
        sys.executable,
        "-m",
        "apriel_assets.cli",
        "run",
        "--recipe",
        recipe,
        "--home",
        str(home),
        "--json",
    ]
    command += ["--set", f"seed={seed}", "--set", f"name={name_of(recipe, seed)}"]
    command += [word for name in variants for word in ("--variant", name)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def compared(lake: Lake, recipe: str, seeds: list[int], pairs: list[tuple[str, str]]) -> list[dict]:
    """Return each pair's rows over all tasks: per seed, and over the seeds if there are several."""

    def sides(wanted: list[int], model: str) -> str:
        return ",".join(f"{name_of(recipe, seed)}:{model}" for seed in wanted)

    rows = []
    groups = [[seed] for seed in seeds] + ([seeds] if len(seeds) > 1 else [])
    for a, b in pairs:
        for group in groups:
            found = compare_models(lake, sides(group, a), sides(group, b))
            rows += [
                {"a": a, "b": b, "seeds": group}
                | {**asdict(row), "a_value": row.a, "b_value": row.b, "a": a, "b": b}
                for row in found.rows
                if row.task == OVERALL
            ]
    return rows


def main() -> None:
    """Run what is missing and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, required=True, help="where artifacts go")
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--variants", nargs="+", help="of these variants alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "recipe_variants.json"
    )
    given = parser.parse_args()
    variants = given.variants or list(load_recipe(given.recipe).variants)
    for seed in given.seeds:
        run_seed(given.home, given.recipe, seed, variants, given.threads)
    lake = Lake(given.home)
    made = lake.query("SELECT DISTINCT model, base_model FROM ablations ORDER BY ALL")[1]
    pairs = [(own, base) for own, base in made if own.split("/")[0] in variants]
    pairs += [pair for pair in FURTHER if {name.split("/")[0] for name in pair} <= set(variants)]
    rows = compared(lake, given.recipe, given.seeds, pairs)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    content = {
        "recipe": given.recipe,
        "variants": variants,
        "seeds": given.seeds,
        "comparisons": rows,
        "cpu_seconds_of_this_call": used.ru_utime + used.ru_stime,
        "code": code_revision(),
        "libraries": library_versions(),
        "machine": platform.machine(),
        "threads": given.threads,
    }
    given.out.write_text(json.dumps(content, indent=1) + "\n")
    for row in rows:
        interval = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        print(
            f"{row['a']:22} {row['b']:16} {row['seeds']!s:10} {row['metric']:16} {interval} {row['better']}"
        )


if __name__ == "__main__":
    main()
