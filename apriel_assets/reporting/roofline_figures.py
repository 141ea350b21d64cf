"""Pictures of what limits decoding: rooflines, levers, modelled speed by context, published speeds and their limit."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apriel_assets.reporting.drawing import (
    INK,
    ORANGE,
    hover_points,
    label_points,
    legend_above,
    new_figure,
    picture,
    plain_log,
    tag,
)
from apriel_assets.reporting.figures import Row, Rows

_INTENSITIES = (0.25, 4096.0)  # FLOP per byte, from left to right


@picture
def rooflines(devices: Rows) -> Figure | None:
    """Draw the FLOP/s that each device allows by arithmetic intensity, and where attention's decode stands."""
    if not devices:
        return None
    figure, (axes,) = new_figure(3.6)
    x = np.geomspace(*_INTENSITIES, 100)
    for row in devices:
        y = np.minimum(x * row["bytes_per_s"], row["flops_per_s"]) / 1e12
        title = f"{row['device']}: ridge at {row['ridge_flops_per_byte']:.0f} FLOP/byte"
        (line,) = axes.plot(x, y, label=row["device"][:28])
        tag(line, None, title)
        ridge = row["ridge_flops_per_byte"], row["flops_per_s"] / 1e12
        axes.plot(*ridge, "o", ms=4, color=line.get_color())
        hover_points(axes, [(*ridge, title, None)])
    intensity = devices[0]["kv_read_intensity"]
    tag(axes.axvline(intensity, color=INK, ls=":"), None, f"attention in decode: {intensity:g} FLOP/byte")
    plain_log(axes, "x")
    plain_log(axes)
    axes.set_xlabel("FLOP per byte (dotted: attention in decode)")
    axes.set_ylabel("at most, TFLOP/s")
    legend_above(axes, columns=2)
    return figure


@picture
def levers(rows: Rows) -> Figure | None:
    """Draw the modelled speed-up of each lever alone, by context."""
    if not rows:
        return None
    figure, (axes,) = new_figure(4.2)
    for index, lever in enumerate(dict.fromkeys(row["lever"] for row in rows)):
        own = [row for row in rows if row["lever"] == lever]
        x, y = [row["context_tokens"] for row in own], [row["speedup"] for row in own]
        tag(
            axes.plot(x, y, "os^D"[index % 4] + "-", ms=3, label=lever),
            None,
            f"{lever}: {y[-1]:.2f}x at {x[-1]:,}",
        )
    _by_context(axes, rows)
    plain_log(axes)
    axes.set_ylabel("modelled decode speed-up")
    axes.legend(loc="upper left", fontsize=7)
    return figure


@picture
def modelled_by_context(
    steps: Mapping[str, Sequence[Row]], value: str, label: str, unit: float = 1.0
) -> Figure | None:
    """Draw a modelled figure of every model by context.

    Args:
        steps: by model, rows of `roofline_sections.modelled_steps`.
        value: which of their figures.
        label: what it is, with its unit.
        unit: how much of the figure that unit is.
    """
    if not steps:
        return None
    figure, (axes,) = new_figure(3.8)
    for index, (model, rows) in enumerate(steps.items()):
        x, y = [row["context_tokens"] for row in rows], [row[value] / unit for row in rows]
        drawn = axes.plot(x, y, "os^D"[index // 8 % 4] + "-", ms=3, label=model)
        tag(drawn, model, f"{model}: {y[-1]:,.4g} at {x[-1]:,} tokens")
    _by_context(axes, [row for rows in steps.values() for row in rows])
    values = [row[value] / unit for rows in steps.values() for row in rows]
    if max(values) > 20 * min(values):
        plain_log(axes)
    axes.set_ylabel(label)
    legend_above(axes, columns=6)
    return figure


@picture
def published_speeds(published: Rows) -> Figure | None:
    """Draw published speed-ups against what rereading the KV cache alone would give: layers over attention layers."""
    rows = [row for row in published if row["kv_limit"] is not None and row["benchmark"] is None]
    rows = [row for row in rows if row["kv_limit"] > 1]
    if not rows:
        return None
    figure, (axes,) = new_figure(3.8)
    labels = []
    for source, marker in (("h1", "o"), ("supernet", "s"), ("field", "^")):
        own = [row for row in rows if row["source"] == source]
        axes.plot([r["kv_limit"] for r in own], [r["speedup"] for r in own], marker, ms=5, label=source)
        titles = [
            f"{r['model']}: {r['speedup']}x, limit {r['kv_limit']:.2f}x; {r['note'] or ''}" for r in own
        ]
        hover_points(axes, [(r["kv_limit"], r["speedup"], t, None) for r, t in zip(own, titles, strict=True)])
        labels += [(r["kv_limit"], r["speedup"], r["model"], None) for r in own]
    ends = 1.0, 1.2 * max(max(row["kv_limit"], row["speedup"]) for row in rows)
    axes.plot(ends, ends, ":", color=ORANGE, label="equal")
    plain_log(axes, "x")
    plain_log(axes)
    axes.set_xlabel("layers over full-attention layers")
    axes.set_ylabel("published speed-up")
    axes.legend(loc="upper left")
    label_points(axes, labels)
    return figure


def _by_context(axes: Axes, rows: Rows) -> None:
    contexts = sorted({row["context_tokens"] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(contexts, [_short(context) for context in contexts])
    axes.set_xlabel("context, tokens")


def _short(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens >= 1024 and tokens % 1024 == 0 else str(tokens)
