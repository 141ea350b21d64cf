"""The page's sections on the search: what was chosen, how it was found, and whether its scores can be trusted."""

from collections.abc import Sequence

from apriel_assets.reporting import search_figures
from apriel_assets.reporting.layer_maps import counts_text
from apriel_assets.reporting.sections import ABSENT, Picture, Section, Table, interval, shown
from apriel_assets.reporting.summary import Row, Tables, leaderboard_table, table_rows

_ALL_FA = {"fa"}


def placements_section(tables: Tables) -> Section:
    """What was chosen, and what it is worth."""
    placements, candidates = table_rows(tables, "placements"), table_rows(tables, "candidates")
    accuracy, source = teacher_accuracy(tables)
    caption = "Up and left is better. Filled: chosen for a budget. Hollow: runner-up. Bars: 95% intervals."
    if accuracy is not None:
        caption += f" Square: all full attention, {source}."
    if any(row["budget"] is not None for row in candidates):
        caption += " Faint dots: scored candidates by their estimate, where that is in units of accuracy."
    picture = Picture(
        title="Quality against cost",
        svg=search_figures.quality_against_cost(placements, accuracy, candidates),
        caption=caption + " On the line: what no other generated point beats in both cost and accuracy.",
    )
    return Section(
        title="Placements",
        lead="Which mixer each layer gets: the best that was found within each budget, judged by what it generates.",
        pictures=[picture],
        tables=[_placement_table(placements)],
        sources=("placements", "candidates", "audit_points"),
    )


def search_section(tables: Tables) -> Section:
    """How the search went, and how far its scores carry."""
    candidates = table_rows(tables, "candidates")
    drawn = [row for row in candidates if None not in (row["value"], row["ess_share"])]
    left_out = (
        f" {search_figures.MAX_POINTS} of {len(drawn):,} candidates are drawn, evenly by value."
        if len(drawn) > search_figures.MAX_POINTS
        else ""
    )
    return Section(
        title="Search",
        lead="Candidates within a budget are scored on stored completions of the teacher, without generating anything.",
        pictures=[
            Picture(
                title="Best value by placements scored",
                svg=search_figures.best_by_candidates(table_rows(tables, "search_curve")),
                caption="A line that has been flat for long says that more search would hardly help."
                " Band: 95% interval of the best. One line per budget.",
            ),
            Picture(
                title="Value against effective sample size",
                svg=search_figures.value_against_ess(candidates),
                caption="A point per candidate. Far left, few completions carry all the weight: a high value there is"
                " luck, not quality. Cross: the estimator was not to be trusted." + left_out,
            ),
        ],
        tables=[],
        sources=("search_curve", "candidates"),
    )


def audit_section(tables: Tables) -> Section:
    """The estimators held against generation."""
    points, ranking = table_rows(tables, "audit_points"), ranking_estimators(tables)
    audited = {row["estimator"] for row in points}
    pictures = [
        Picture(
            title=f"Estimate against generation: {name}"
            + (" (ranks the candidates)" if name in ranking else ""),
            svg=search_figures.estimate_against_generated(points, name),
            caption="A point per audited placement; where the cloud rises to the right, the estimate orders placements"
            " as generation does. Bars: 95% intervals over problems."
            + (" Dotted: equal." if name in search_figures.ACCURACY_ESTIMATORS else ""),
        )
        for name in dict.fromkeys([*(ranking or ["ois_clipped"]), "snis"])
        if name in audited
    ]
    rows = [
        (
            row["estimator"] + (" (ranks)" if row["estimator"] in ranking else ""),
            shown(row["pearson"], "+.3f"),
            interval(row["spearman"], row["spearman_low"], row["spearman_high"], "+.3f"),
            shown(row["bias"], "+.3f"),
            str(row["num_placements"]),
        )
        for row in table_rows(tables, "audit")
    ]
    table = Table(
        title="Estimators against generation",
        headings=("estimator", "Pearson", "Spearman (95%)", "bias", "placements"),
        rows=rows,
        note="Pearson and Spearman: correlation of values and of ranks with generated accuracy, 1 is perfect. Bias:"
        " mean of estimate - accuracy; a dash where units differ, or where all placements came out alike.",
    )
    return Section(
        title="Audit of the estimators",
        lead="Can the scores be trusted? Placements from all full attention to none were scored and made to generate.",
        pictures=pictures,
        tables=[table],
        sources=("audit", "audit_points"),
    )


def ranking_estimators(tables: Tables) -> list[str]:
    """Return the estimators that ranked candidates: one, unless a search had to fall back on another."""
    candidates = table_rows(tables, "candidates")
    searched = [row for row in candidates if row["budget"] is not None] or candidates
    return list(dict.fromkeys(row["estimator"] for row in searched))


def teacher_accuracy(tables: Tables) -> tuple[float | None, str]:
    """Return all-FA's generated accuracy and where it is from: the audit's problems are of the finalists' tasks."""
    for row in table_rows(tables, "audit_points"):
        if set(row["placement"]) == _ALL_FA:
            return row["generated_accuracy"], "generated in the audit, on the finalists' held-out tasks"
    for row in leaderboard_table(tables).to_pylist():
        if row["kind"] == "teacher" and row["accuracy"] is not None:
            return row["accuracy"], "the teacher's in the evals, whose tasks and problems are others"
    return None, ""


def _placement_table(placements: Sequence[Row]) -> Table:
    ordered = sorted(placements, key=lambda row: (row["budget"], row["rank"]))
    return Table(
        title="Chosen placements and runner-ups",
        headings=("budget", "rank", "name", "cost", "generated accuracy", "estimate", "layers", "found by"),
        rows=[
            (
                f"{row['budget']:g}",
                "chosen" if row["chosen"] else str(row["rank"]),
                row["name"] or ABSENT,
                shown(row["cost"]),
                interval(row["generated_accuracy"], row["generated_low"], row["generated_high"]),
                interval(row["value"], row["low"], row["high"]),
                counts_text(row["placement"]),
                row["strategy"] or ABSENT,
            )
            for row in ordered
        ],
        note="Generated accuracy: greedy, on held-out problems that are not in the completion store. Estimate: by"
        " forward passes over the store. All with 95% intervals over problems. Cost: all-FA = 1.",
    )
