"""The page's first section: what to ship for each budget, and how sure that is."""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from apriel_assets.evaluation.comparison import ComparisonRow, compare_to
from apriel_assets.reporting.layer_maps import counts_text
from apriel_assets.reporting.search_sections import ranking_estimators
from apriel_assets.reporting.sections import ABSENT, Section, Table, interval, shown
from apriel_assets.reporting.summary import Row, Tables, leaderboard_table, table_rows
from apriel_assets.tables.held_back import not_held_back

_KEPT = (0.99, 0.95, 0.9, 0.8)  # shares of the teacher's accuracy that people ask for
_TEACHER = "teacher"


def recommendation_section(tables: Tables) -> Section:
    """What each budget ships, and the fastest model that keeps a share of the teacher's quality."""
    leaderboard = {row["model"]: row for row in leaderboard_table(tables).to_pylist()}
    chosen = sorted((row for row in table_rows(tables, "placements") if row["chosen"]), key=_by_budget)
    shipped = {row["budget"]: shipped_model(row, tables, leaderboard) for row in chosen}
    differences = against_teacher(tables, [name for name in shipped.values() if name])
    return Section(
        title="Recommended",
        lead="What to ship, and how sure that is." + _trust(tables),
        pictures=[],
        tables=[
            Table(
                title="For each budget",
                headings=(
                    "budget",
                    "ship",
                    "layers",
                    "cost",
                    "accuracy",
                    "decode",
                    "against the teacher",
                    "other finalists",
                ),
                rows=[
                    _budget_row(row, shipped[row["budget"]], leaderboard, differences, tables)
                    for row in chosen
                ],
                note="Ship: the model as released, after all training. Against the teacher: paired on the same test"
                " problems, adjusted for the number of rows here; what may hide is how large a difference can still be."
                " Other finalists: how many of the budget generated so well that their 95% interval overlaps:"
                " any of these would be as good a choice.",
            ),
            _fastest(leaderboard),
        ],
        sources=("placements", "eval_samples", "leaderboard", "audit"),
    )


def compared_models(tables: Tables) -> list[str]:
    """Return the models whose `eval_samples` the section needs: what ships, and the teacher."""
    leaderboard = {row["model"]: row for row in leaderboard_table(tables).to_pylist()}
    chosen = [row for row in table_rows(tables, "placements") if row["chosen"]]
    shipped = [shipped_model(row, tables, leaderboard) for row in chosen]
    return list(dict.fromkeys([_TEACHER, *(name for name in shipped if name)]))


def _trust(tables: Tables) -> str:
    """Say how well the scores that the search ranked by order placements, as the audit found."""
    ranking = ranking_estimators(tables)
    told = [
        f" The search's scores ({row['estimator']}) order placements as generation does with a rank correlation of"
        f" {interval(row['spearman'], row['spearman_low'], row['spearman_high'], '+.2f')}, audited on"
        f" {row['num_placements']} placements."
        for row in table_rows(tables, "audit")
        if row["estimator"] in ranking
    ]
    return "".join(told)


def shipped_model(choice: Row, tables: Tables, leaderboard: Mapping[str, Row]) -> str | None:
    """Return the model that a budget's choice ends up as: the one released with its placement, else itself."""
    released = [
        row
        for row in not_held_back(table_rows(tables, "checkpoints"), table_rows(tables, "before_after"))
        if row["kind"] == "release" and row["placement"] == choice["placement"]
    ]
    # A release that was trained on is released again.
    same = [row["model"] for row in sorted(released, key=lambda row: -(row["total_tokens"] or 0))]
    return next((name for name in [*same, choice["name"]] if name in leaderboard), None)


def against_teacher(tables: Tables, models: Sequence[str]) -> dict[str, ComparisonRow]:
    """Return each model's paired difference from the teacher, where problems were kept."""
    if "eval_samples" not in tables or not models:
        return {}
    samples = tables["eval_samples"]
    teacher = _of(samples, _TEACHER)
    return compare_to(teacher, {name: _of(samples, name) for name in models if name != _TEACHER})


def _of(samples: pa.Table, model: str) -> pa.Table:
    return samples.filter(pc.field("model") == model)


def _by_budget(row: Row) -> float:
    return -row["budget"]


def _budget_row(
    choice: Row,
    model: str | None,
    leaderboard: Mapping[str, Row],
    differences: Mapping[str, ComparisonRow],
    tables: Tables,
) -> tuple[str, ...]:
    own = leaderboard.get(model or "", {})
    return (
        f"{choice['budget']:g}",
        model or choice["name"] or ABSENT,
        counts_text(choice["placement"]),
        shown(choice["cost"]),
        interval(own.get("accuracy"), own.get("accuracy_low"), own.get("accuracy_high")),
        _times(own.get("decode_speedup")),
        difference_text(differences.get(model or "")),
        _choice_text(choice, table_rows(tables, "placements")),
    )


def difference_text(found: ComparisonRow | None) -> str:
    """Return a paired difference from the teacher in words."""
    if found is None:
        return ABSENT
    if found.better is None:
        return found.verdict
    return (
        f"{'worse' if found.better == 'b' else 'better'} by {interval(abs(found.difference), *_ends(found))}"
    )


def _ends(found: ComparisonRow) -> tuple[float, float]:
    ends = sorted((abs(found.low), abs(found.high)))
    return ends[0], ends[1]


def _choice_text(choice: Row, placements: Sequence[Row]) -> str:
    others = [row for row in placements if row["budget"] == choice["budget"] and not row["chosen"]]
    if not others or choice["generated_low"] is None:
        return "no other finalist" if not others else ABSENT
    alike = [
        row
        for row in others
        if row["generated_high"] is not None
        and row["generated_high"] >= choice["generated_low"]
        and row["generated_low"] <= choice["generated_high"]
    ]
    if not alike:
        return f"better than all {len(others)}"
    return f"{len(alike)} of {len(others)} as good"


def _fastest(leaderboard: Mapping[str, Row]) -> Table:
    """Return, for each share of the teacher's accuracy, the fastest model that keeps it, by mean and for sure."""
    base = leaderboard.get(_TEACHER, {}).get("accuracy") or 0.0
    timed = [row for row in leaderboard.values() if None not in (row["accuracy"], row["decode_speedup"])]
    rows = []
    for share in _KEPT if base else ():
        by_mean = [row for row in timed if row["accuracy"] >= share * base]
        surely = [row for row in by_mean if (row["accuracy_low"] or 0.0) >= share * base]
        rows.append((f"{share:.0%}", _fastest_text(by_mean), _fastest_text(surely)))
    return Table(
        title="Fastest model that keeps a share of the teacher's accuracy",
        headings=("keeps at least", "by its mean", "by the lower end of its interval"),
        rows=rows,
        note="Measured decode speed over the teacher's. The best of several models looks better than it is; the last"
        " column leaves room for that.",
    )


def _fastest_text(rows: Sequence[Row]) -> str:
    if not rows:
        return ABSENT
    best = max(rows, key=lambda row: row["decode_speedup"])
    return f"{best['model']}, {_times(best['decode_speedup'])}"


def _times(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2f}x"
