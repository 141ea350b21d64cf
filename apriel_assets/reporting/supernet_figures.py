"""Pictures of the supernet's training: the sampled placements' loss, and how each mixer comes along."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apriel_assets.reporting.drawing import BLUE, INK, MIXER_COLOURS, new_figure, picture, plain_log
from apriel_assets.reporting.figures import Rows

_MEANS = 20  # of neighbouring steps, over a whole curve; with fewer points, each is marked
_WIDE = 20  # largest over smallest value from which an axis is logarithmic


@picture
def sampled_loss(training: Rows) -> Figure | None:
    """Draw the loss of every step, whose placement is another one each time, and its mean over neighbours."""
    rows = sorted((row for row in training if row["loss_nats"] is not None), key=lambda row: row["step"])
    if not rows:
        return None
    figure, (axes,) = new_figure(3.0)
    steps, losses = [row["step"] for row in rows], [row["loss_nats"] for row in rows]
    span = max(1, len(rows) // _MEANS)
    if span == 1:
        axes.plot(steps, losses, ".-", color=BLUE)
    else:
        axes.plot(steps, losses, color=BLUE, alpha=0.35, lw=0.8)
        axes.plot(*_means(steps, losses, span), color=BLUE, lw=1.8)
    _log_if_wide(axes, losses)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per token")
    return figure


@picture
def probe_curves(curves: Rows) -> Figure | None:
    """Draw KL to the teacher of every fixed placement: one mixer everywhere in its colour, random ones in grey."""
    return _curves(curves, "kl_nats", "KL(placement || teacher), nats per token")


@picture
def output_errors(curves: Rows) -> Figure | None:
    """Draw how far each mixer's output is from full attention's on the same input."""
    return _curves(curves, "output_error", "squared error over FA's squared output")


def _curves(curves: Rows, value: str, label: str) -> Figure | None:
    probes: dict[str, list[tuple[int, float]]] = {}
    for row in sorted(curves, key=lambda row: row["step"]):
        if row[value] is not None:
            probes.setdefault(row["probe"], []).append((row["step"], row[value]))
    if not probes:
        return None
    figure, (axes,) = new_figure(3.2)
    wide = _log_if_wide(axes, [drawn for points in probes.values() for _, drawn in points if drawn > 0])
    for probe, points in probes.items():
        steps, values = zip(*points, strict=True)
        mixer = probe.removeprefix("all_").removeprefix("mixer_")
        colour, style = MIXER_COLOURS.get(mixer, INK), "-" if mixer in MIXER_COLOURS else "--"
        # A logarithm shows no zero: say it in words.
        hidden = wide and min(values) <= 0
        name = probe + (": 0 throughout" if not any(values) else " (0 not shown)") * hidden
        shown = [drawn if drawn > 0 or not wide else math.nan for drawn in values]
        width, dots = (1.6 if style == "-" else 0.9), "." if len(steps) <= _MEANS else None
        axes.plot(steps, shown, style, color=colour, marker=dots, label=name, lw=width)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.legend(ncols=2)
    return figure


def _means(steps: list[int], values: list[float], span: int) -> tuple[list[float], list[float]]:
    starts = range(0, len(values) - span + 1, span)
    return tuple([sum(series[at : at + span]) / span for at in starts] for series in (steps, values))  # type: ignore[return-value]


def _log_if_wide(axes: Axes, values: list[float]) -> bool:
    wide = bool(values) and min(values) > 0 and max(values) > _WIDE * min(values)
    if wide:
        plain_log(axes)
    return wide
