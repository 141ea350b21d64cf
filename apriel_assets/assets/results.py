"""What people look at: the leaderboard and the report page."""

from collections.abc import Collection, Sequence

import pyarrow as pa

from apriel_assets.assets.asset_plan import AssetPlan, Job
from apriel_assets.assets.build_rows import build_row
from apriel_assets.assets.checks import LEADERBOARD_CHECK
from apriel_assets.assets.evals import EvaluatedModel
from apriel_assets.assets.regression_checks import LEADERBOARD_REGRESSION_CHECK
from apriel_assets.assets.sketches import sketch_leaderboard
from apriel_assets.assets.task_keys import task_key
from apriel_assets.recipe import Recipe
from resources.artifact_store import Artifact
from resources.provenance import environment

PAGE = "report.html"


def build_leaderboard(job: Job, *, models: tuple[str, ...], tasks: tuple[str, ...]) -> None:
    """One row per model: quality with its interval, places that paired tests leave open, KL, speed-up, tokens."""
    from apriel_assets.evaluation.ranking import accuracy_places
    from apriel_assets.reporting.summary import leaderboard_table

    tables = input_tables(job)
    places = accuracy_places(tables["eval_samples"])
    job.draft.tables["leaderboard"] = leaderboard_table(tables, places)


def build_report(job: Job, *, recipe: str) -> None:
    """One self-contained HTML page with all tables and pictures of the recipe."""
    from apriel_assets.reporting.report import render_report

    builds = pa.concat_tables([build_row(artifact) for artifact in _inputs(job)])
    tables = input_tables(
        job, without=("lm_eval_samples",)
    )  # every document with its prompt: nothing shows them
    page = render_report({**tables, "builds": builds}, recipe=recipe, provenance=environment())
    (job.draft.path / PAGE).write_text(page)


def input_tables(job: Job, without: Collection[str] = ()) -> dict[str, pa.Table]:
    """Return the rows of all inputs, by table, but for some tables."""
    parts: dict[str, list[pa.Table]] = {}
    for artifact in _inputs(job):
        for name in (own for own in artifact.table_names if own not in without):
            parts.setdefault(name, []).append(artifact.table(name))
    return {name: pa.concat_tables(tables, promote_options="default") for name, tables in parts.items()}


def _inputs(job: Job) -> list[Artifact]:
    return [artifact for parts in job.inputs.values() for artifact in parts.values()]


def result_assets(
    recipe: Recipe,
    models: Sequence[EvaluatedModel],
    evals: Sequence[AssetPlan],
    others: Sequence[AssetPlan],
) -> list[AssetPlan]:
    """Return the leaderboard and the report, which read everything before them.

    Args:
        recipe: names the tasks.
        models: rows of the leaderboard.
        evals: of these models.
        others: what only the report shows.
    """
    described = {}  # what has the models' `checkpoints` rows
    for model in models:
        source = model.chosen_by.asset if model.chosen_by else model.checkpoint
        described[source.key] = source
    leaderboard = AssetPlan(
        key="leaderboard",
        group="results",
        build=build_leaderboard,
        reads={
            "models": tuple(model.name for model in models),
            "tasks": tuple(task_key(task) for task in recipe.evals.tasks),
        },
        inputs=(*described.values(), *evals),
        kinds=("parquet",),
        recipe=recipe.name,
        reads_weights=False,
        tables=("leaderboard",),
        revision="2",
        sketch=sketch_leaderboard,
        checks=(LEADERBOARD_CHECK, LEADERBOARD_REGRESSION_CHECK),
    )
    report = AssetPlan(
        key="report",
        group="results",
        build=build_report,
        reads={"recipe": recipe.name},
        inputs=(*described.values(), *evals, *others, leaderboard),
        kinds=("html",),
        recipe=recipe.name,
        reads_weights=False,
        revision="2",
    )
    return [leaderboard, report]
