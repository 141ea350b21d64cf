"""What a variant's change did: its models beside the recipe's own of the same name, on the same problems."""

from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa

from apriel_assets.assets.asset_plan import AssetPlan, Job
from apriel_assets.assets.evals import EvaluatedModel
from apriel_assets.assets.publishing import variant_rows


def build_ablation(job: Job, *, variant: str, models: tuple[str, ...], described: tuple[str, ...]) -> None:
    """The variant's models: paired differences from the base's, task by task, and their rows of the leaderboard."""
    from apriel_assets.evaluation.ablation import ablation_rows
    from apriel_assets.reporting.summary import leaderboard_table
    from apriel_assets.tables.schemas import to_table

    rows = []
    for model in models:
        if f"evals/{model}" in job.inputs:
            own, base = (
                _rows(job, [key], "eval_samples") for key in (f"{variant}/evals/{model}", f"evals/{model}")
            )
            rows += ablation_rows(f"{variant}/{model}", own, model, base)
    own = {"evals": [f"{variant}/evals/{model}" for model in models], "checkpoints": described}
    own["throughput"] = [
        key for key in job.inputs if key.removeprefix(f"{variant}/").startswith("throughput/")
    ]
    tables = {name: _rows(job, keys, name) for name, keys in own.items()}
    kept = {name: _of_models(table, models) for name, table in tables.items()}
    teacher = {name: _of_models(table, ["teacher"]) for name, table in tables.items()}
    both = {
        name: pa.concat_tables([variant_rows(kept[name], variant, models), teacher[name]]) for name in tables
    }
    leaderboard = leaderboard_table(both).to_pylist()
    job.draft.tables |= {
        "ablations": to_table("ablations", rows),
        "leaderboard": to_table("leaderboard", [row for row in leaderboard if row["model"] != "teacher"]),
    }


def _rows(job: Job, keys: Iterable[str], table: str) -> pa.Table:
    parts = [artifact.table(table) for key in keys for artifact in job.input_partitions(key)]
    return pa.concat_tables(parts, promote_options="default")


def _of_models(rows: pa.Table, models: Sequence[str]) -> pa.Table:
    wanted = set(models)
    return rows.filter(pa.array([model in wanted for model in rows.column("model").to_pylist()], pa.bool_()))


def ablation_asset(
    variant: str,
    models: Sequence[EvaluatedModel],
    own: Mapping[str, AssetPlan],
    base: Mapping[str, AssetPlan],
) -> AssetPlan | None:
    """Return `<variant>/ablation`; None if no model of the variant is evaluated otherwise than the recipe's.

    Args:
        variant: its name.
        models: what the recipe with the variant's overlay evaluates.
        own: the variant's twins.
        base: the recipe's own assets.
    """

    def found(key: str) -> AssetPlan:
        return own.get(f"{variant}/{key}") or base[key]

    changed = [model for model in models if f"{variant}/evals/{model.name}" in own]
    if not changed:
        return None
    sources = [
        found((model.chosen_by.asset if model.chosen_by else model.checkpoint).key) for model in changed
    ]
    described = tuple(dict.fromkeys(asset.key for asset in (*sources, found("teacher"))))
    names = [model.name for model in changed]
    measured = [found(f"{kind}/{name}") for name in names for kind in ("evals", "throughput")]
    pairs = [base[f"evals/{name}"] for name in names if f"evals/{name}" in base]
    inputs = [found("teacher"), found("throughput/teacher"), *sources, *measured, *pairs]
    return AssetPlan(
        key=f"{variant}/ablation",
        group="results",
        variant=variant,
        build=build_ablation,
        reads={"variant": variant, "models": tuple(names), "described": described},
        inputs=tuple({asset.key: asset for asset in inputs}.values()),
        kinds=("parquet",),
        recipe=base["teacher"].recipe,
        tables=("ablations", "leaderboard"),
    )
