"""The page's section on re-evaluation: does what is shipped still give the same figures?"""

import statistics

from matplotlib.figure import Figure

from apriel_assets.reporting.drawing import hover_points, new_figure, picture, tag
from apriel_assets.reporting.figures import Row, Rows
from apriel_assets.reporting.sections import Picture, Section, Table, interval, shown
from apriel_assets.reporting.summary import Tables, table_rows

_MOST_ROWS = 40  # drifted figures in the table


def drift_section(tables: Tables) -> Section:
    """Dated results of the schedule, each beside the last one of equal weights and settings."""
    rows = sorted(table_rows(tables, "reevals"), key=lambda row: row["date"])
    drifted = [row for row in rows if row["drifted"]]
    compared = sum(row["last_value"] is not None for row in rows)
    dates = sorted({row["date"] for row in rows})
    since = f" from {dates[0]} to {dates[-1]}" if dates else ""
    return Section(
        title="Drift",
        lead=f"What is shipped, evaluated again on a schedule: {len(dates)} dates{since}. Of {compared} figures that"
        f" could be compared, {len(drifted)} lay outside of the last result's 95% interval.",
        pictures=[
            Picture(
                title="Accuracy over dates",
                svg=accuracy_over_dates(rows),
                caption="Mean over tasks. Same weights, same problems: only software and device can move it. Cross: a"
                " figure of this date lies outside of the last result's interval.",
            )
        ],
        tables=[
            Table(
                title="Figures that drifted",
                headings=("date", "model", "task", "metric", "value", "last (95%)", "last date"),
                rows=[_drifted(row) for row in drifted[-_MOST_ROWS:]],
                note=f"The latest {_MOST_ROWS} at most. Last: of the same checkpoint under the same settings.",
            )
        ],
        sources=("reevals",),
    )


@picture
def accuracy_over_dates(rows: Rows) -> Figure | None:
    """Draw each shipped model's mean accuracy at every date; a cross where any of its figures drifted."""
    measured = [row for row in rows if row["metric"] == "accuracy"]
    if not measured:
        return None
    dates = sorted({row["date"] for row in rows})
    figure, (axes,) = new_figure(3.2)
    for index, model in enumerate(sorted({row["model"] for row in measured})):
        own = [row for row in measured if row["model"] == model]
        points = [
            (number, statistics.fmean(values), date)
            for number, date in enumerate(dates)
            if (values := [row["value"] for row in own if row["date"] == date])
        ]
        x, y = [number for number, _, _ in points], [value for _, value, _ in points]
        (line,) = axes.plot(x, y, "os^D"[index % 4] + "-", ms=4, label=model)
        tag(line, model)
        hover_points(axes, [(n, value, f"{model}, {date}: {value:.3f}", model) for n, value, date in points])
        moved = {row["date"] for row in rows if row["model"] == model and row["drifted"]}
        at = [(number, value) for number, value, date in points if date in moved]
        if at:
            tag(axes.plot(*zip(*at, strict=True), "x", ms=9, mew=2, color=line.get_color()), model)
    shown_dates = [date if number % max(1, len(dates) // 6) == 0 else "" for number, date in enumerate(dates)]
    axes.set_xticks(range(len(dates)), [date[:10] for date in shown_dates])
    axes.set_ylabel("accuracy, mean over tasks")
    axes.margins(x=0.08, y=0.15)
    axes.legend()
    return figure


def _drifted(row: Row) -> tuple[str, ...]:
    return (
        row["date"],
        row["model"],
        row["task"],
        row["metric"],
        shown(row["value"], ".4g"),
        interval(row["last_value"], row["last_low"], row["last_high"], ".4g"),
        row["last_date"] or "evals",
    )
