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

from apriel_assets.evaluation.comparison import OVERALL, compare
from resources.lake import Lake


def over_seeds(homes: Sequence[Path], recipe: str) -> dict[str, Any]:
    """Return, of each placement of the matryoshka, accuracy by seed and its difference from `safe` over all seeds.

    Every seed asks other problems, and `safe`, the same weights with full attention everywhere, answered them too.

    Args:
        homes: one a seed, in which the searched part is finished.
        recipe: name under which the lakes have their rows.

    Raises:
        SystemExit: two homes of one seed, whose answers are no more than those of one.
    """
    lakes = {_seed(home, recipe): Lake(home) for home in homes}
    if len(lakes) < len(homes):
        raise SystemExit(f"{len(homes)} homes, but seeds {', '.join(map(str, lakes))}; give one home a seed")
    found: dict[str, list[Row]] = {"over_seeds": [], "placements": [], "mixer_costs": [], "audit": []}
    for seed, home in zip(lakes, homes, strict=True):
        tables = tables_of(home, recipe)
        for table in ("mixer_costs", "audit"):
            found[table] += [{"seed": seed, **row} for row in columns_of(tables[table], TABLES[table])]
        found["placements"] += [
            {"seed": seed, "model": row["model"], "placement": letters(row["placement"])}
            for row in tables["checkpoints"].to_pylist()
            if row["kind"] in ("placement", "release")
        ]
    for model in dict.fromkeys(row["model"] for row in found["placements"] if row["model"] != "safe"):
        pairs = [(_answers(lake, recipe, model), _answers(lake, recipe, "safe")) for lake in lakes.values()]
        if any(answers.num_rows == 0 for answers, _ in pairs):
            continue
        by_seed = [compare([pair], ["accuracy"])[0].a for pair in pairs]
        found["over_seeds"] += [
            {"model": model, "accuracy_by_seed": by_seed, **row.as_json()}
            for row in compare(pairs)
            if row.task == OVERALL
        ]
    return {
        "recipe": recipe,
        **found,
        **origin([own for home in homes for own in provenance_of(home, recipe)]),
    }


def _seed(home: Path, recipe: str) -> int:
    return max(own["recipe_slice"].get("seed", 0) for own in provenance_of(home, recipe))


def _answers(lake: Lake, recipe: str, model: str) -> pa.Table:
    return lake.arrow(
        "SELECT * EXCLUDE (completion) FROM eval_samples WHERE recipe = $recipe AND model = $model AND variant IS NULL",
        {"recipe": recipe, "model": model},
    )


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
