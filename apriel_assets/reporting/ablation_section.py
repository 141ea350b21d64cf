"""The page's section on variants: what each change of the recipe did to its models."""

from matplotlib.figure import Figure

from apriel_assets.evaluation.comparison import OVERALL
from apriel_assets.reporting.drawing import INK, error_bars, hover_points, new_figure, picture
from apriel_assets.reporting.figures import Row, Rows
from apriel_assets.reporting.sections import Picture, Section, Table, interval, shown
from apriel_assets.reporting.summary import Tables, table_rows


def ablation_section(tables: Tables) -> Section:
    """The models of the recipe's variants, each beside the recipe's own on the same problems."""
    rows = table_rows(tables, "ablations")
    overall = [row for row in rows if row["task"] == OVERALL]
    detected = {row["model"] for row in overall if row["better"]}
    models = {row["model"] for row in overall}
    return Section(
        title="Ablations",
        lead=f"Variants of the recipe, each with one thing changed: {len(models)} models beside the recipe's own of the"
        f" same name. Of {len(detected)} the two can be told apart over all tasks, in accuracy or in KL.",
        pictures=[
            Picture(
                title="What each change did to accuracy",
                svg=differences(overall),
                caption="Variant minus base, paired by problem, mean over tasks, 95% interval over problems. One"
                " training run each: another seed moves these figures too, and no interval shows that.",
            )
        ],
        tables=[_table(overall, metric, title) for metric, title in _METRICS.items()],
        sources=("ablations",),
    )


_METRICS = {
    "accuracy": "Accuracy of variants",
    "reverse_kl_nats": "Reverse KL of variants, nats per token",
}


def _table(overall: Rows, metric: str, title: str) -> Table:
    return Table(
        title=title,
        headings=("model", "against", "value", "base", "variant - base (95%)", "p", "verdict"),
        rows=[_cells(row) for row in overall if row["metric"] == metric],
        note="Mean over tasks. p: sign-flip test. By task: from ablations, or apriel compare.",
    )


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row["model"],
        row["base_model"],
        shown(row["value"], ".4g"),
        shown(row["base_value"], ".4g"),
        interval(row["difference"], row["low"], row["high"], "+.3f"),
        shown(row["p_value"], ".2g"),
        f"{row['better']} is better"
        if row["better"]
        else f"no detectable difference (one of up to {row['could_hide']:.2g} may hide)",
    )


@picture
def differences(overall: Rows) -> Figure | None:
    """Draw the difference in accuracy of each model with its interval, a line each; `overall` over all tasks."""
    rows = [row for row in overall if row["metric"] == "accuracy"]
    if not rows:
        return None
    figure, (axes,) = new_figure(0.9 + 0.28 * len(rows))
    values, places = [row["difference"] for row in rows], list(range(len(rows)))
    bars = error_bars(values, [row["low"] for row in rows], [row["high"] for row in rows])
    axes.errorbar(values, places, xerr=bars, fmt="o", ms=5, capsize=2)
    axes.axvline(0.0, color=INK, lw=1, ls=":")
    hover_points(
        axes,
        [
            (
                row["difference"],
                place,
                f"{row['model']}: {interval(row['difference'], row['low'], row['high'])}",
                None,
            )
            for place, row in zip(places, rows, strict=True)
        ],
    )
    axes.set_yticks(places, [row["model"] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("accuracy, variant - base")
    return figure
