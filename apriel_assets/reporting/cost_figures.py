"""Pictures of costs: what each mixer costs, measured and modelled, and whether the sum over layers is true."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apriel_assets.hybrid.placement import MIXERS
from apriel_assets.reporting.drawing import INK, MIXER_COLOURS, diagonal, new_figure, picture
from apriel_assets.reporting.figures import Row, Rows
from apriel_assets.search.costs import r_squared


@picture
def mixer_costs(rows: Rows) -> Figure | None:
    """Draw each mixer's time over full attention's: measured filled, the roofline's prediction outlined below it."""
    points = sorted({_point(row) for row in rows})
    if not points:
        return None
    groups = [[row for row in rows if _point(row) == point] for point in points]
    height = sum(0.45 * len(group) + 0.45 for group in groups) + 0.4
    figure, all_axes = new_figure(height, rows=len(points))
    longest = max(row[name] or 0.0 for row in rows for name in ("relative", "roofline_relative"))
    for axes, point, group in zip(all_axes, points, groups, strict=True):
        axes.set_title(_named(point))
        _bars(axes, sorted(group, key=_order))
        axes.set_xlim(0, 1.15 * max(longest, 1.0))
    all_axes[-1].set_xlabel("time of one layer's mixer, full attention = 1")
    return figure


@picture
def predicted_against_measured(cost_check: Rows) -> Figure | None:
    """Draw every timed placement's time, measured over predicted; on the dotted line the cost model is right."""
    if not cost_check:
        return None
    figure, (axes,) = new_figure(3.4)
    points = sorted({_point(row) for row in cost_check})
    for point in points:
        rows = [row for row in cost_check if _point(row) == point]
        x, y = [row["predicted"] for row in rows], [row["measured"] for row in rows]
        axes.plot(x, y, "o", ms=4, alpha=0.8, label=_named(point))
    axes.plot(1, 1, "s", color=INK, ms=5, label="all-FA")
    axes.set_xlabel("predicted time of the whole model, all-FA = 1")
    axes.set_ylabel("measured, all-FA = 1")
    diagonal(axes)
    axes.legend()
    return figure


def prediction_errors(cost_check: Rows) -> tuple[float, float]:
    """Return R2 (NaN if the measured times are all the same) and the largest |predicted - measured|, all-FA = 1."""
    predicted, measured = (np.array([row[name] for row in cost_check]) for name in ("predicted", "measured"))
    return r_squared(predicted, measured), float(abs(predicted - measured).max())


def _bars(axes: Axes, rows: Sequence[Row]) -> None:
    axes.axvline(1, color=INK, ls=":", lw=1)
    for place, row in enumerate(rows):
        colour = MIXER_COLOURS.get(row["mixer"], INK)
        for name, shift, filled in (("relative", -0.19, True), ("roofline_relative", 0.19, False)):
            if row[name] is None:
                continue
            axes.barh(place + shift, row[name], 0.34, color=colour if filled else "none", edgecolor=colour)
            axes.annotate(
                f"{row[name]:.2f}", (row[name], place + shift), xytext=(3, 0), textcoords="offset points",
                fontsize=7, va="center",
            )  # fmt: skip
    axes.set_yticks(range(len(rows)), [row["mixer"] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)


def _point(row: Row) -> tuple[str, int, int]:
    return row["phase"], row["context_tokens"], row["batch_size"]


def _named(point: tuple[str, int, int]) -> str:
    phase, context, batch = point
    return f"{phase}, {context} tokens, batch {batch}"


def _order(row: Row) -> tuple[int, str]:
    return MIXERS.index(row["mixer"]) if row["mixer"] in MIXERS else len(MIXERS), row["mixer"]
