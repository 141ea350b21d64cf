"""Pictures of the search: how the best value rises, which scores can be trusted, and what the choice is worth."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apriel_assets.reporting.drawing import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    diagonal,
    error_bars,
    label_points,
    new_figure,
    picture,
    plain_log,
    tag_errorbar,
)
from apriel_assets.reporting.figures import Row, Rows
from apriel_assets.reporting.pareto import pareto_front

ACCURACY_ESTIMATORS = ("ois", "ois_clipped", "snis")  # in units of accuracy; the others have their own
MAX_POINTS = 600  # candidates drawn in one picture: a page of a long search stays light
_WIDE = 20  # largest over smallest value from which an axis is logarithmic
_FULL_ATTENTION = {"fa"}


@picture
def best_by_candidates(search_curve: Rows) -> Figure | None:
    """Draw each budget's best value so far, with its interval, against the candidates scored."""
    if not search_curve:
        return None
    figure, (axes,) = new_figure(3.2)
    for budget, strategy in dict.fromkeys((row["budget"], row["strategy"]) for row in search_curve):
        rows = [row for row in search_curve if (row["budget"], row["strategy"]) == (budget, strategy)]
        rows.sort(key=lambda row: row["candidates"])
        scored, best = [row["candidates"] for row in rows], [row["best_value"] for row in rows]
        name = f"budget {budget:g}, {strategy}"
        (line,) = axes.plot(scored, best, "o-", ms=2.5, drawstyle="steps-post", label=name)
        if all(None not in (row["best_low"], row["best_high"]) for row in rows):
            ends = [row["best_low"] for row in rows], [row["best_high"] for row in rows]
            axes.fill_between(scored, *ends, step="post", color=line.get_color(), alpha=0.12, lw=0)
    axes.set_xlabel("placements scored")
    axes.set_ylabel("best value so far")
    axes.legend(loc="lower right")
    return figure


@picture
def value_against_ess(candidates: Rows) -> Figure | None:
    """Draw every candidate's value against its ESS share; a cross where the estimator was not to be trusted."""
    rows = thinned([row for row in candidates if None not in (row["value"], row["ess_share"])])
    if not rows:
        return None
    figure, (axes,) = new_figure(3.4)
    audited = [row for row in rows if row["budget"] is None]
    if audited:
        _values(axes, audited, "audit", INK)
    for index, budget in enumerate(sorted({row["budget"] for row in rows if row["budget"] is not None})):
        _values(axes, [row for row in rows if row["budget"] == budget], f"budget {budget:g}", f"C{index}")
    shares = [row["ess_share"] for row in rows]
    if min(shares) > 0 and max(shares) > _WIDE * min(shares):
        plain_log(axes, "x")
    if not all(row["reliable"] for row in rows):
        axes.plot([], [], "x", color=INK, label="not reliable")
    axes.set_xlabel("ESS, share of the completions")
    axes.set_ylabel("value: " + " / ".join(dict.fromkeys(row["estimator"] for row in rows)))
    axes.legend()
    return figure


@picture
def estimate_against_generated(points: Rows, estimator: str) -> Figure | None:
    """Draw the audited placements' real accuracy, with its interval, against what one estimator says."""
    rows = [row for row in points if row["estimator"] == estimator and row["estimate"] is not None]
    if not rows:
        return None
    figure, (axes,) = new_figure(3.4)
    for own, colour, style, name in (
        ([row for row in rows if set(row["placement"]) != _FULL_ATTENTION], BLUE, "o", "placement"),
        ([row for row in rows if set(row["placement"]) == _FULL_ATTENTION], ORANGE, "s", "all-FA"),
    ):
        if own:
            x, y = [row["estimate"] for row in own], [row["generated_accuracy"] for row in own]
            axes.errorbar(
                x, y, _generated_errors(own), fmt=style, ms=4, color=colour, elinewidth=0.7, label=name
            )
    axes.set_xlabel(f"estimate by {estimator}")
    axes.set_ylabel("generated accuracy")
    if estimator in ACCURACY_ESTIMATORS:
        diagonal(axes)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


@picture
def quality_against_cost(placements: Rows, teacher: float | None, candidates: Rows = ()) -> Figure | None:
    """Draw generated accuracy against cost: chosen placements named, runner-ups hollow, the Pareto front over all.

    Args:
        placements: rows of that table.
        teacher: accuracy of all-FA, which costs 1.
        candidates: rows of that table; drawn faintly by their estimates, if those are in units of accuracy.
    """
    rows = [row for row in placements if None not in (row["generated_accuracy"], row["cost"])]
    if not rows:
        return None
    figure, (axes,) = new_figure(3.8)
    behind = [row for row in candidates if row["estimator"] in ACCURACY_ESTIMATORS]
    behind = thinned([row for row in behind if None not in (row["cost"], row["value"])])
    if behind:
        at = [row["cost"] for row in behind], [row["value"] for row in behind]
        axes.plot(*at, ".", ms=5, color=INK, alpha=0.4, mew=0, label="candidate, estimated", zorder=1)
    labels = []
    for row in sorted(rows, key=lambda row: row["chosen"]):
        x, y, fill = row["cost"], row["generated_accuracy"], GREEN if row["chosen"] else "none"
        drawn = axes.errorbar(
            x, y, _generated_errors([row]), fmt="o", ms=5, color=GREEN, mfc=fill, elinewidth=0.8
        )
        name = row["name"] or f"budget {row['budget']:g}, rank {row['rank']}"
        tag_errorbar(drawn, row["name"], f"{name}: generated accuracy {y:.3f} at cost {x:.3f}")
        if row["chosen"]:
            labels.append((x, y, name, row["name"]))
    points = [(row["cost"], row["generated_accuracy"]) for row in rows]
    if teacher is not None:
        axes.plot(1, teacher, "s", color=ORANGE, ms=6)
        labels.append((1.0, teacher, "all-FA", None))
        points.append((1.0, teacher))
    front = pareto_front(points)
    front.append(
        (max(cost for cost, _ in points), front[-1][1])
    )  # who may spend more can still take the best
    axes.plot(
        *zip(*front, strict=True), "-", drawstyle="steps-post", color=BLUE, label="Pareto front", zorder=2
    )
    axes.set_xlabel("cost by the cost model, all-FA = 1")
    axes.set_ylabel("generated accuracy")
    axes.margins(x=0.1)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    label_points(axes, labels)
    return figure


def thinned(rows: Sequence[Row], limit: int = MAX_POINTS) -> list[Row]:
    """Return at most `limit` rows, evenly from first to last by value, both ends kept."""
    if len(rows) <= limit:
        return list(rows)
    ordered = sorted(rows, key=lambda row: row["value"])
    return [ordered[round(index * (len(rows) - 1) / (limit - 1))] for index in range(limit)]


def _values(axes: Axes, rows: Rows, name: str, colour: str) -> None:
    for trusted, marker in ((True, "o"), (False, "x")):
        own = [row for row in rows if bool(row["reliable"]) is trusted]
        at = [row["ess_share"] for row in own], [row["value"] for row in own]
        label = name if trusted else None
        axes.plot(*at, marker, color=colour, ms=3.5, mew=0 if trusted else 1, alpha=0.7, label=label)


def _generated_errors(rows: Rows) -> list[list[float]]:
    columns = ([row[f"generated_{name}"] for row in rows] for name in ("accuracy", "low", "high"))
    return error_bars(*columns)
