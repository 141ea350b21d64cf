r"""What searches of one recipe with several seeds say together of each budget's placement.

    python benchmarks/over_seeds.py --homes HOME0 HOME1 HOME2 --recipe h100-50-layers \
        --out benchmarks/results/50_layers_seeds.json
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from home_results import TABLES, Row, columns_of, letters, origin, provenance_of, tables_of, write_rows

from apriel_assets.comparing import samples_of
from apriel_assets.evaluation.comparison import OVERALL, compare
from resources.lake import Lake

_ALL_FA = "safe"


def over_seeds(homes: Sequence[Path], recipe: str) -> dict[str, Any]:
    """Return how each placement of the matryoshka compares: by seed, and over all of them (`seed` null).

    Every seed asks other problems. A released placement (A) stands against full attention everywhere in the same
    weights, `safe`, and against the same placement before joint training, both of which answered them too.

    Args:
        homes: one a seed, in which the searched part is finished.
        recipe: name under which the lakes have their rows.

    Raises:
        SystemExit: no such home or recipe, two homes of one seed, whose answers are no more than those of one, or other
            budgets.
    """
    tables = {home: tables_of(home, recipe) for home in homes}
    lakes = {_seed(home, recipe): Lake(home) for home in homes}
    if len(lakes) < len(homes):
        raise SystemExit(f"{len(homes)} homes, but seeds {', '.join(map(str, lakes))}; give one home a seed")
    found: dict[str, list[Row]] = {"comparisons": [], "placements": [], "mixer_costs": [], "audit": []}
    pairs = []
    for seed, home in zip(lakes, homes, strict=True):
        for table in ("mixer_costs", "audit"):
            found[table] += [{"seed": seed, **row} for row in columns_of(tables[home][table], TABLES[table])]
        rows = [
            row for row in tables[home]["checkpoints"].to_pylist() if row["kind"] in ("placement", "release")
        ]
        found["placements"] += [
            {"seed": seed, "model": row["model"], "placement": letters(row["placement"])} for row in rows
        ]
        pairs.append(_pairs(rows))
        if pairs[-1] != pairs[0]:
            raise SystemExit(
                f"{home} has {_names(pairs[-1])}, {homes[0]} has {_names(pairs[0])}; search the same budgets"
            )
    for a, b in pairs[0]:
        answers = {
            seed: (_answers(lake, recipe, a), _answers(lake, recipe, b)) for seed, lake in lakes.items()
        }
        for seed, runs in [(None, list(answers.values())), *((seed, [own]) for seed, own in answers.items())]:
            found["comparisons"] += [
                {"a_model": a, "b_model": b, "seed": seed, **row.as_json()}
                for row in compare(runs)
                if row.task == OVERALL
            ]
    return {
        "recipe": recipe,
        **found,
        **origin([own for home in homes for own in provenance_of(home, recipe)]),
    }


def _pairs(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return what is compared: released and searched placements with `safe`, and the first with the second."""
    searched = {tuple(row["placement"]): row["model"] for row in rows if row["kind"] == "placement"}
    released = [row for row in rows if row["kind"] == "release" and row["model"] != _ALL_FA]
    found = [(name, _ALL_FA) for name in (*searched.values(), *(row["model"] for row in released))]
    before = [(row["model"], searched.get(tuple(row["placement"]))) for row in released]
    return sorted([*found, *((name, other) for name, other in before if other is not None)])


def _names(pairs: Sequence[tuple[str, str]]) -> str:
    return ", ".join(dict.fromkeys(a for a, _ in pairs)) or "no placements"


def _answers(lake: Lake, recipe: str, model: str) -> pa.Table:
    found = samples_of(lake, recipe, model)
    if not found.num_rows:
        raise SystemExit(f"{lake.home} has no answers of {model}; run its evals")
    return found


def _seed(home: Path, recipe: str) -> int:
    """Return the seed of what was finished last: a home may have begun as a copy of another seed's."""
    return [
        own["recipe_slice"]["seed"] for own in provenance_of(home, recipe) if "seed" in own["recipe_slice"]
    ][-1]


def main() -> None:
    """Write the result file of several homes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--homes", type=Path, nargs="+", required=True, help="one a seed")
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    write_rows(given.out, over_seeds(given.homes, given.recipe))


if __name__ == "__main__":
    main()
