"""What a finished home says, as one JSON file that is committed, tables in Markdown, and pictures.

    python benchmarks/home_results.py --home HOME --recipe h100-50-layers --out benchmarks/results/50_layers.json

Every figure is a row of the home's tables; provenance says which commit, device and libraries made it. Beside FILE.json
there is FILE.md with the progression beside the published one, and the budgets. Pictures are the report's own.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from apriel_assets.comparing import compare_models
from apriel_assets.evaluation.comparison import OVERALL
from apriel_assets.reporting import figures, search_figures
from apriel_assets.reporting.layer_maps import counts_text, layer_map
from apriel_assets.reporting.search_sections import teacher_accuracy
from apriel_assets.tables.published import published_rows
from apriel_assets.tables.schemas import to_table
from resources.artifact_store import PROVENANCE
from resources.atomic import replaced_file
from resources.lake import Lake

Row = dict[str, Any]

# Table: columns that a reader needs; none: all.
TABLES: Mapping[str, tuple[str, ...]] = {
    "leaderboard": (),
    "layer_scores": ("layer", "rank", "kl_nats"),
    "probes": ("step", "layer", "rank", "loss_nats"),
    "mixer_costs": (),
    "cost_check": (),
    "placements": (),
    "search_curve": (),
    "candidates": ("budget", "cost", "estimator", "value", "low", "high"),
    "audit": (),
    "audit_points": ("estimator", "estimate", "generated_accuracy", "generated_low", "generated_high"),
    "sharing": (),
    "evals": ("model", "task", "metric", "value", "low", "high", "num_problems"),
}
_READ = (*TABLES, "checkpoints", "training", "supernet_curves", "throughput")


def collect(home: Path, recipe: str) -> dict[str, Any]:
    """Return all rows of one recipe that a result file keeps, and where they were made."""
    tables = tables_of(home, recipe)
    kept = {name: columns_of(tables[name], columns) for name, columns in TABLES.items()}
    placements = {row["model"]: row["placement"] for row in tables["checkpoints"].to_pylist()}
    provenance = provenance_of(home, recipe)
    return {
        "recipe": recipe,
        **{name: rows for name, rows in kept.items() if rows},
        "comparisons": _comparisons(home, recipe, kept["leaderboard"]),
        "placements_by_model": {model: letters(own) for model, own in placements.items()},
        "seconds_by_asset": {
            own["asset"] + (f"[{own['partition']}]" if own["partition"] else ""): round(
                own["figures"]["seconds"], 2
            )
            for own in provenance
        },
        **origin(provenance),
    }


def write_results(
    home: Path, recipe: str, out: Path, pictures: Path | None = None, others: Sequence[str] = ()
) -> None:
    """Write the result file, its tables in Markdown, and pictures if a directory is given.

    Args:
        home: finished.
        recipe: name under which the lake has its rows.
        out: JSON file; its tables go beside it.
        pictures: directory.
        others: recipes that searched the same budgets otherwise.
    """
    content = collect(home, recipe)
    if others:
        content["other_searches"] = {
            name: {table: collect(home, name).get(table, []) for table in ("placements", "search_curve")}
            for name in others
        }
    if (extra := home / "teacher.json").is_file():  # how a teacher that was trained for the home came out
        content["teacher_training"] = json.loads(extra.read_text())
    write_rows(out, content)
    out.with_suffix(".md").write_text(markdown(content))
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        for name, svg in draw(tables_of(home, recipe)).items():
            (pictures / f"{name}.svg").write_text(svg)


def markdown(content: Mapping[str, Any]) -> str:
    """Return the progression beside the published one, and the budgets, as Markdown tables."""
    rows = content.get("leaderboard", [])
    teacher = next((row["accuracy"] for row in rows if row["kind"] == "teacher"), None)
    published = {
        row["num_replaced"]: row
        for row in _published()
        if row["source"] == "h1" and row["benchmark"] is None and "SFT" not in row["model"]
    }
    lines = [
        "| model | replaced | accuracy [95%] | of the teacher's | decode | published: of the teacher's | decode |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shown = row["kind"] in ("teacher", "progressive")
        other = published.get(row["num_replaced"]) if shown else None
        lines.append(
            f"| {row['model']} | {row['num_replaced']} | {_interval(row, 'accuracy')} | "
            f"{_ratio(row['accuracy'], teacher)} | {_times(row['decode_speedup'])} | "
            f"{_ratio(other['quality'], other['teacher_quality']) if other else ''} | "
            f"{_times(other['speedup']) if other else ''} |"
        )
    if chosen := [row for row in content.get("placements", []) if row["chosen"]]:
        lines += [
            "",
            "| budget | cost | layers | generated accuracy [95%] | found by |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {row['budget']:g} | {row['cost']:.3f} | {counts_text(row['placement'])} | "
            f"{_interval(row, 'generated_accuracy', 'generated')} | {row['strategy']} |"
            for row in sorted(chosen, key=lambda row: -row["budget"])
        ]
    return "\n".join(lines) + "\n"


def draw(tables: Mapping[str, pa.Table]) -> dict[str, str]:
    """Return the pictures by name, as SVG: those for which there are rows."""
    leaderboard = tables["leaderboard"].to_pylist()
    checkpoints = {row["model"]: row["placement"] for row in tables["checkpoints"].to_pylist()}
    published = _published()
    num_layers = len(next(iter(checkpoints.values()), ()))
    rows = {name: table.to_pylist() for name, table in tables.items()}
    found = {
        "progression": figures.quality_over_replaced(leaderboard, published, num_layers),
        "quality-against-speed": figures.quality_against_speed(leaderboard, published),
        "pareto": search_figures.quality_against_cost(
            rows["placements"], teacher_accuracy(tables)[0], rows["candidates"]
        ),
        "search": search_figures.best_by_candidates(rows["search_curve"]),
        **{f"layers-{row['model']}": layer_map(checkpoints[row["model"]]) for row in leaderboard},
    }
    return {name: svg for name, svg in found.items() if svg}


def _published() -> list[Row]:
    return to_table("published", published_rows()).to_pylist()


def tables_of(home: Path, recipe: str) -> dict[str, pa.Table]:
    """Return the tables of one recipe that result files and pictures are made of.

    Raises:
        SystemExit: there are none.
    """
    if not (home / "lake").is_dir():
        raise SystemExit(f"{home} is no home with results; give the directory that --home named")
    lake = Lake(home)
    tables = {name: lake.read(name, recipe) for name in _READ}
    if not any(table.num_rows for table in tables.values()):
        raise SystemExit(
            f"{home} has no results of a recipe {recipe!r}; give the name that its results go by"
        )
    return tables


def columns_of(table: pa.Table, columns: Sequence[str]) -> list[Row]:
    """Return a table's rows with these columns; none: with all that say more than the recipe's name."""
    shown = columns or [name for name in table.column_names if name not in ("recipe", "version")]
    return table.select(list(shown)).to_pylist()


def _comparisons(home: Path, recipe: str, leaderboard: Sequence[Row]) -> list[Row]:
    """Return what `apriel compare` says over all tasks, p-values of each pair by itself.

    Each model (A) stands against the teacher, and each that is neither teacher nor a step of the schedule against
    each of these steps.
    """
    answered = [row for row in leaderboard if row["accuracy"] is not None]
    teacher, steps = (
        [row["model"] for row in answered if row["kind"] == kind] for kind in ("teacher", "progressive")
    )
    lake = Lake(home)
    found = []
    for model in (row["model"] for row in answered if row["model"] not in teacher):
        for other in teacher if model in steps else [*teacher, *steps]:
            rows = compare_models(lake, f"{recipe}:{model}", f"{recipe}:{other}").rows
            found += [
                {"a_model": model, "b_model": other, **row.as_json()} for row in rows if row.task == OVERALL
            ]
    return found


def provenance_of(home: Path, recipe: str) -> list[dict[str, Any]]:
    """Return what the artifacts of one recipe say of themselves, oldest first."""
    paths = (home / "artifacts").rglob(PROVENANCE)
    found = [json.loads(path.read_text()) for path in paths]
    return sorted((own for own in found if own["recipe"] == recipe), key=lambda own: own["finished_unix_s"])


def origin(provenance: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return commits, devices, libraries and seeds that artifacts were made by."""
    return {
        "code": sorted({own["code"] for own in provenance}),
        "device": sorted({own["device"] for own in provenance}),
        "libraries": provenance[-1]["libraries"] if provenance else {},
        "seeds": sorted({own["recipe_slice"].get("seed", 0) for own in provenance}),
    }


def letters(placement: Sequence[str]) -> str:
    """Return the first letter of each layer's mixer."""
    return "".join(mixer[0] for mixer in placement)


def write_rows(out: Path, content: Mapping[str, Any]) -> None:
    """Write the command of this process and the content as JSON, with a line for each row of a table."""
    command = shlex.join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    parts = []
    for name, value in _rounded({"command": command, **content}).items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            text = "[\n" + ",\n".join(f"  {json.dumps(row)}" for row in value) + "\n ]"
        else:
            text = json.dumps(value, indent=1).replace("\n", "\n ")
        parts.append(f" {json.dumps(name)}: {text}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(out) as temporary:  # a cut leaves the former results
        temporary.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(own) for key, own in value.items()}
    return [_rounded(own) for own in value] if isinstance(value, list | tuple) else value


def _interval(row: Mapping[str, Any], name: str, ends: str | None = None) -> str:
    if row[name] is None:
        return ""
    low, high = row[f"{ends or name}_low"], row[f"{ends or name}_high"]
    return f"{row[name]:.3f}" + (f" [{low:.3f}, {high:.3f}]" if None not in (low, high) else "")


def _ratio(value: float | None, whole: float | None) -> str:
    return f"{value / whole:.3f}" if value is not None and whole else ""


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def main() -> None:
    """Write the result file of a home."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--others", nargs="+", default=[], help="recipes that searched the same budgets")
    given = parser.parse_args()
    write_results(given.home, given.recipe, given.out, given.pictures, given.others)


if __name__ == "__main__":
    main()
