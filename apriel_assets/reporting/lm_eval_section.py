"""The page's section on tasks of the lm-evaluation-harness, and which of their figures stand in the leaderboard."""

from collections.abc import Mapping, Sequence

from apriel_assets.reporting.figures import Row, Rows
from apriel_assets.reporting.sections import ABSENT, Section, Table, shown
from apriel_assets.reporting.summary import Tables, table_rows

_MOST_COLUMNS = 6  # of such tasks beside the leaderboard's own
Figure = tuple[str, str, str]  # task, metric, filter


def lm_eval_section(tables: Tables) -> Section:
    """Every metric of what the recipe asks of the harness, by task, a row a model."""
    rows = table_rows(tables, "lm_evals")
    asked = list(dict.fromkeys(row["asked"] for row in rows))
    versions = sorted({str(row["harness_version"]) for row in rows})
    return Section(
        title="Tasks of the lm-evaluation-harness",
        lead=f"{len(asked)} tasks and groups of the recipe, by lm-eval {', '.join(versions)}: value, one standard error"
        " by the harness, and samples answered.",
        pictures=[],
        tables=[_table(name, [row for row in rows if row["asked"] == name]) for name in asked],
        sources=("lm_evals",),
    )


def _table(asked: str, rows: Rows) -> Table:
    # A group's own figures; its tasks', which may be dozens, where it has none.
    own = [row for row in rows if row["task"] == asked] or list(rows)
    figures = list(dict.fromkeys(_figure(row) for row in own))
    cells: dict[str, dict[Figure, str]] = {}
    for row in own:
        cells.setdefault(row["model"], {})[_figure(row)] = _with_error(row)
    left_out = len({row["task"] for row in rows} - {row["task"] for row in own})
    parts = f" By task ({left_out}): from lm_evals where asked = '{asked}'." if left_out else ""
    return Table(
        title=asked,
        headings=("model", *(_heading(figure) for figure in figures), "shots", "samples"),
        rows=[
            (model, *(found.get(figure, ABSENT) for figure in figures), *_counts(own, model))
            for model, found in cells.items()
        ],
        note=f"Version {', '.join(sorted({str(row['task_version']) for row in own}))} of the task.{parts}",
    )


def _counts(rows: Rows, model: str) -> tuple[str, str]:
    """Return the shots and the samples of a model's rows."""
    found = [row for row in rows if row["model"] == model]
    shots = sorted({"mixed" if row["num_fewshot"] is None else str(row["num_fewshot"]) for row in found})
    samples = sorted({row["num_samples"] for row in found if row["num_samples"] is not None})
    return ", ".join(shots), ", ".join(f"{number:,}" for number in samples) or ABSENT


def headline_columns(tables: Tables) -> dict[str, str]:
    """Return the first metric of each task or group asked for, as far as they fit: column name and heading."""
    found = {f"lm_eval {index}": heading for index, heading in enumerate(_headlines(tables).values())}
    return dict(list(found.items())[:_MOST_COLUMNS])


def headline_cells(tables: Tables, models: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the cells of these columns by model: value, standard error and samples."""
    figures = list(_headlines(tables))[:_MOST_COLUMNS]
    cells = {
        (row["model"], _figure(row)): f"{_with_error(row)}, n={row['num_samples']}"
        for row in table_rows(tables, "lm_evals")
    }
    return {
        model: {
            f"lm_eval {index}": cells.get((model, figure), ABSENT) for index, figure in enumerate(figures)
        }
        for model in models
    }


def _headlines(tables: Tables) -> Mapping[Figure, str]:
    found: dict[Figure, str] = {}
    seen = set()
    for row in table_rows(tables, "lm_evals"):
        if row["asked"] in seen or row["task"] != row["asked"]:
            continue
        seen.add(row["asked"])
        shots = "" if row["num_fewshot"] is None else f", {row['num_fewshot']}-shot"
        found[_figure(row)] = f"{row['task']} ({_heading(_figure(row))}{shots})"
    return found


def _figure(row: Row) -> Figure:
    return row["task"], row["metric"], row["filter"]


def _heading(figure: Figure) -> str:
    _, metric, way = figure
    return metric if way in (None, "none") else f"{metric}, {way}"


def _with_error(row: Row) -> str:
    error = "" if row["stderr"] is None else f" ± {row['stderr']:.3f}"
    return shown(row["value"]) + error
