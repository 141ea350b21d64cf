"""The supernet procedure's part of the page: a section per step, and none for a step that left no rows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from apriel_assets.reporting import cost_figures, search_figures, supernet_figures
from apriel_assets.reporting.layer_maps import counts_text
from apriel_assets.reporting.summary import Row, Tables, leaderboard_table, table_rows

_ABSENT = "-"
_PUBLISHED_SHARING = "about 80%"  # of the 15B supernet's parameters, by its report
_ALL_FA = {"fa"}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An SVG, and how to read it."""

    title: str
    svg: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """Text ready to print; the first column names the row."""

    title: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """One step: what was asked, pictures and tables."""

    title: str
    lead: str
    pictures: list[Picture]
    tables: list[Table]


def h2_sections(tables: Tables) -> list[Section]:
    """Return the sections that have something to show, the result first, then what it rests on."""
    makers: tuple[Callable[[Tables], Section], ...] = (
        _placements,
        _search,
        _audit,
        _costs,
        _supernet,
        _matryoshka,
    )
    sections = []
    for make in makers:
        made = make(tables)
        pictures = [picture for picture in made.pictures if picture.svg]
        shown = [table for table in made.tables if table.rows]
        if pictures or shown:
            sections.append(Section(title=made.title, lead=made.lead, pictures=pictures, tables=shown))
    return sections


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


def _placements(tables: Tables) -> Section:
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
        caption=caption + " No point beats one on the line in both cost and accuracy.",
    )
    return Section(
        title="Placements",
        lead="Which mixer each layer gets: the best that was found within each budget, judged by what it generates.",
        pictures=[picture],
        tables=[_placement_table(placements)],
    )


def _placement_table(placements: Sequence[Row]) -> Table:
    ordered = sorted(placements, key=lambda row: (row["budget"], row["rank"]))
    return Table(
        title="Chosen placements and runner-ups",
        headings=("budget", "rank", "name", "cost", "generated accuracy", "estimate", "layers", "found by"),
        rows=[
            (
                f"{row['budget']:g}",
                "chosen" if row["chosen"] else str(row["rank"]),
                row["name"] or _ABSENT,
                _shown(row["cost"]),
                _interval(row["generated_accuracy"], row["generated_low"], row["generated_high"]),
                _interval(row["value"], row["low"], row["high"]),
                counts_text(row["placement"]),
                row["strategy"] or _ABSENT,
            )
            for row in ordered
        ],
        note="Generated accuracy: greedy, on held-out problems that are not in the completion store. Estimate: by"
        " forward passes over the store. All with 95% intervals over problems. Cost: all-FA = 1.",
    )


def _search(tables: Tables) -> Section:
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
    )


def _audit(tables: Tables) -> Section:
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
            _shown(row["pearson"], "+.3f"),
            _interval(row["spearman"], row["spearman_low"], row["spearman_high"], "+.3f"),
            _shown(row["bias"], "+.3f"),
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
    )


def _costs(tables: Tables) -> Section:
    costs, checked = table_rows(tables, "mixer_costs"), table_rows(tables, "cost_check")
    devices = ", ".join(sorted({row["device"] for row in [*costs, *checked] if row["device"]}))
    found = ""
    if checked:
        r2, worst = cost_figures.prediction_errors(checked)
        shown = "not defined: all measured times are equal" if math.isnan(r2) else f"{r2:.3f}"
        found = f" R2: {shown}. Worst error: {worst:.3f} of the all-FA model's time."
    return Section(
        title="Costs",
        lead="What a mixer costs against full attention" + (f", measured on {devices}." if devices else "."),
        pictures=[
            Picture(
                title="Cost of each mixer",
                svg=cost_figures.mixer_costs(costs),
                caption="Shorter is cheaper; left of the dotted line, cheaper than full attention. Filled: measured."
                " Outlined: what the bytes (decode) or operations (prefill) alone would allow.",
            ),
            Picture(
                title="Predicted against measured time",
                svg=cost_figures.predicted_against_measured(checked),
                caption="A point per timed placement of the whole model: on the dotted line, the cost model is right;"
                " above it, the model is slower than predicted." + found,
            ),
        ],
        tables=[],
    )


def _supernet(tables: Tables) -> Section:
    curves = table_rows(tables, "supernet_curves")
    names = supernet_names(tables)
    training = [row for row in table_rows(tables, "training") if row["model"] in names]
    return Section(
        title="Supernet",
        lead="Every layer holds several mixers, trained together: each step distils one random placement.",
        pictures=[
            Picture(
                title="KL of fixed placements",
                svg=supernet_figures.probe_curves(curves),
                caption="Lower is closer to the teacher. One mixer in every layer, in its colour, and random mixtures,"
                " dashed: a line that stays high while the others fall is a mixer that starves.",
            ),
            Picture(
                title="Output error by mixer",
                svg=supernet_figures.output_errors(curves),
                caption="How far each mixer's output is from full attention's on the same input, mean over layers:"
                " 0 is the same, 1 is as bad as no output at all.",
            ),
            Picture(
                title="Training loss",
                svg=supernet_figures.sampled_loss(training),
                caption="Every step has another placement, so single steps (faint) jump; the trend is what counts.",
            ),
        ],
        tables=[_probe_table(curves)],
    )


def supernet_names(tables: Tables) -> set[str]:
    """Return the models whose training samples placements."""
    kinds = {row["model"] for row in table_rows(tables, "checkpoints") if row["kind"] == "supernet"}
    return kinds | {row["model"] for row in table_rows(tables, "supernet_curves")}


def _probe_table(curves: Sequence[Row]) -> Table:
    rows = []
    for probe in dict.fromkeys(row["probe"] for row in curves):
        own = sorted((row for row in curves if row["probe"] == probe), key=lambda row: row["step"])
        first, last = own[0], own[-1]
        name = "kl_nats" if last["kl_nats"] is not None else "output_error"
        what = "KL, nats per token" if name == "kl_nats" else "output error"
        rows.append((probe, what, _shown(first[name], ".4g"), _shown(last[name], ".4g")))
    steps = [row["step"] for row in curves]
    return Table(
        title="Probes at the first and the last step",
        headings=("probe", "quantity", f"step {min(steps)}", f"step {max(steps)}") if steps else (),
        rows=rows,
        note="On one fixed held-out batch.",
    )


def _matryoshka(tables: Tables) -> Section:
    rows = list({tuple(row.items()): row for row in table_rows(tables, "sharing")}.values())
    shares = list(dict.fromkeys(f"{row['shared_share']:.1%}" for row in rows))
    return Section(
        title="One checkpoint, several speeds",
        lead=f"Of the checkpoint's parameters, {' or '.join(shares)} are used by every placement; published for the"
        f" 15B supernet: {_PUBLISHED_SHARING}.",
        pictures=[],
        tables=[
            Table(
                title="Sharing",
                headings=("placement", "parameters that it runs", "share of all", "bytes that only it needs"),
                rows=[
                    (
                        row["placement"],
                        f"{row['parameters']:,}",
                        f"{row['parameters'] / row['total_parameters']:.1%}",
                        f"{row['added_bytes']:,}",
                    )
                    for row in rows
                ],
                note="What several placements need is stored once. Bytes that only it needs: what the checkpoint would"
                " shrink by without this placement.",
            )
        ],
    )


def _shown(value: float | None, form: str = ".3f") -> str:
    return _ABSENT if value is None or math.isnan(value) else format(value, form)


def _interval(value: float | None, low: float | None, high: float | None, form: str = ".3f") -> str:
    if value is None or low is None or high is None:
        return _shown(value, form)
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"
