"""Does the published H1 lesson hold at quickstart scale? One recipe, variants that differ in one key, several seeds.

    python benchmarks/h1_lessons.py --work /tmp/lessons --seeds 0 1 2 --parallel 1

Writes benchmarks/results/h1_lessons.json: accuracy and reverse KL of every H-k by variant and seed, and the paired
difference of each variant to the base with a 95% t-interval over seeds. Runs continue where they were cut.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from apriel_assets.recipe import load_recipe
from resources.lake import Lake
from resources.provenance import code_revision, library_versions

# Name: overlays, and the steps that its lesson is about (all variants of a seed share a home, so what they have in
# common, e.g. h6 of base and loo_order, is trained once).
VARIANTS: dict[str, tuple[list[str], str]] = {
    "base": ([], "all"),  # mapped (MIL), easiest first, MMR order
    "random_init": (["h1.init=random"], "first"),
    "reverse_order": (["h1.order=reverse_loo"], "first"),
    "loo_order": (["h1.order=loo"], "last"),
}
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # two-sided, n - 1 degrees of freedom


def run_one(work: Path, recipe: str, variant: str, seed: int, overlays: list[str], threads: int) -> None:
    """Bring the evals of one variant's steps up to date, in the home of its seed."""
    changes, which = VARIANTS[variant]
    schedule = load_recipe(recipe, overlays).h1.schedule
    ends = {"first": schedule[:1], "last": schedule[-1:], "all": (schedule[0], schedule[-1])}[which]
    overlays = [f"seed={seed}", f"name={variant}-{seed}", *overlays, *changes]
    sets = [word for overlay in overlays for word in ("--set", overlay)]
    command = [sys.executable, "-m", "apriel_assets.cli", "run", "--recipe", recipe, *sets, "--json"]
    command += ["--home", str(work / str(seed)), "--select", ",".join(f"evals/h{k}" for k in ends)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    started = time.time()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(f"{variant} seed {seed}: exit {done.returncode} in {time.time() - started:.0f} s", flush=True)
    if done.returncode:
        print(done.stderr[-2000:], flush=True)


def figures(work: Path, variant: str, seed: int) -> dict[str, dict[str, float]]:
    """Return {h<k>: {metric: mean over tasks}} of one finished run."""
    rows = Lake(work / str(seed)).read("evals", f"{variant}-{seed}").to_pylist()
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        found.setdefault(row["model"], {}).setdefault(row["metric"], []).append(row["value"])
    return {
        model: {metric: statistics.mean(values) for metric, values in metrics.items()}
        for model, metrics in found.items()
    }


def differences(results: dict[str, dict[str, dict]], seeds: list[int]) -> list[dict]:
    """Return variant minus base, paired by seed, with a t-interval, for every model and metric."""
    rows = []
    for variant in (name for name in VARIANTS if name != "base"):
        for model, metrics in results[variant][str(seeds[0])].items():
            for metric in metrics:
                pairs = [
                    results[variant][str(s)][model][metric] - results["base"][str(s)][model][metric]
                    for s in seeds
                ]
                mean = statistics.mean(pairs)
                half = (
                    T_95[len(pairs)] * statistics.stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else None
                )
                interval = {} if half is None else {"low": mean - half, "high": mean + half}
                row = {"variant": variant, "model": model, "metric": metric, "difference": mean}
                rows.append({**row, **interval, "per_seed": pairs})
    return rows


def main() -> None:
    """Run what is missing and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="where the homes go")
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--set", dest="overlays", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parallel", type=int, default=1, help="seeds at a time")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "h1_lessons.json")
    given = parser.parse_args()

    def run_seed(seed: int) -> None:
        for variant in VARIANTS:
            run_one(given.work, given.recipe, variant, seed, given.overlays, given.threads)

    with ThreadPoolExecutor(given.parallel) as pool:
        list(pool.map(run_seed, given.seeds))
    results = {
        variant: {str(seed): figures(given.work, variant, seed) for seed in given.seeds}
        for variant in VARIANTS
    }
    content = {
        "recipe": given.recipe,
        "overlays": given.overlays,
        "seeds": given.seeds,
        "results": results,
        "differences_to_base": differences(results, given.seeds),
        "code": code_revision(),
        "libraries": library_versions(),
        "machine": platform.machine(),
        "threads_per_run": given.threads,
    }
    given.out.write_text(json.dumps(content, indent=1) + "\n")
    for row in content["differences_to_base"]:
        interval = f"[{row['low']:+.3f}, {row['high']:+.3f}]" if "low" in row else ""
        print(f"{row['variant']:14} {row['model']:4} {row['metric']:16} {row['difference']:+.3f} {interval}")


if __name__ == "__main__":
    main()
