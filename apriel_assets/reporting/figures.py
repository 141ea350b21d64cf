"""Pictures of result tables: each takes rows and returns one SVG, or an empty string for nothing to draw."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apriel_assets.reporting.drawing import (
    BLUE,
    GREEN,
    NUM_COLOURS,
    ORANGE,
    PUBLISHED,
    error_bars,
    hover_points,
    label_points,
    legend_above,
    new_figure,
    picture,
    plain_log,
    tag,
    tag_errorbar,
)
from apriel_assets.reporting.pareto import pareto_front
from apriel_assets.reporting.summary import speedup

Row = dict[str, Any]
Rows = Sequence[Row]

_PUBLISHED = "published (15B, 50 layers)"
_UNITS = {"kl": "nats per token", "accuracy": "accuracy lost", "lm_eval": "accuracy lost"}


@picture
def rankings(
    layer_scores: Rows, probes: Rows, newly_replaced: Mapping[str, Collection[int]] | None = None
) -> Figure | None:
    """Draw leave-one-out importance and every step's probe losses, all in leave-one-out order, easiest first.

    Where the two agree, the bars of each panel rise from left to right. Numbers are each panel's own ranks.

    Args:
        layer_scores: rows of that table.
        probes: rows of that table.
        newly_replaced: the layers that each step replaced; "leave-one-out" for the first. They are orange.
    """
    steps = sorted({row["step"] for row in probes}, key=lambda step: (len(step), step))
    unit = _UNITS.get(layer_scores[0]["metric"], "") if layer_scores else ""
    panels = [("leave-one-out", list(layer_scores), "importance", unit)] if layer_scores else []
    for step in steps:
        rows = [row for row in probes if row["step"] == step]
        panels.append((f"probes for {step}", rows, "loss_nats", "nats per token"))
    if not panels:
        return None
    order = [row["layer"] for row in sorted(panels[0][1], key=lambda row: row["rank"])]
    order += sorted({row["layer"] for row in probes} - set(order))
    figure, all_axes = new_figure(1.25 * len(panels) + 0.5, rows=len(panels))
    for axes, (title, rows, value, label) in zip(all_axes, panels, strict=True):
        chosen = (newly_replaced or {}).get(title.removeprefix("probes for "), ())
        _bars(axes, order, rows, value, chosen)
        axes.set_title(title)
        axes.set_ylabel(label)
    all_axes[-1].set_xlabel("layer")
    return figure


def _bars(axes: Axes, order: Sequence[int], rows: Rows, value: str, chosen: Collection[int]) -> None:
    by_layer = {row["layer"]: row for row in rows}
    places = [place for place, layer in enumerate(order) if layer in by_layer]
    shown = [by_layer[order[place]] for place in places]
    values = [row[value] for row in shown]
    colours = [ORANGE if row["layer"] in chosen else BLUE for row in shown]
    positive = [figure for figure in values if figure > 0]
    wide = len(positive) == len(values) and max(positive) > 50 * min(positive)
    axes.bar(places, values, color=colours, width=0.7)
    if wide:
        plain_log(axes)
    if len(order) <= 30:  # more numbers than that run into each other
        for place, row in zip(places, shown, strict=True):
            axes.annotate(
                str(row["rank"]), (place, row[value]), xytext=(0, 1), textcoords="offset points", fontsize=7,
                ha="center", va="bottom",
            )  # fmt: skip
    axes.set_xticks(range(len(order)), [str(layer) for layer in order], fontsize=7 if len(order) <= 30 else 5)
    axes.set_xlim(-0.6, len(order) - 0.4)
    axes.margins(y=0.2)


@picture
def quality_against_speed(leaderboard: Rows, published: Rows) -> Figure | None:
    """Draw accuracy over the teacher's against measured decode speed-up, the front of what no model beats in both.

    The published H1 points stand beside ours, over their own teacher's.
    """
    ours = [row for row in leaderboard if None not in (row["accuracy"], row["decode_speedup"])]
    if not ours:
        return None
    teacher = next((row["accuracy"] for row in ours if row["kind"] == "teacher"), None)
    base = teacher or 1.0  # accuracy itself where there is none to divide by
    figure, (axes,) = new_figure(4.2)
    labels = []
    for row in ours:
        colour = BLUE if row["kind"] in ("teacher", "progressive") else GREEN
        x, y, model = row["decode_speedup"], row["accuracy"] / base, row["model"]
        drawn = axes.errorbar(x, y, yerr=_errors([row], base), fmt="o", ms=5, color=colour, capsize=2)
        tag_errorbar(drawn, model, f"{model}: accuracy {_with_interval(row)}, {x:.2f}x decode")
        labels.append((x, y, model, model))
    # By time per token, which is what speed costs.
    front = pareto_front([(1 / row["decode_speedup"], row["accuracy"] / base) for row in ours])
    axes.plot([1 / cost for cost, _ in front], [y for _, y in front], ":", color=BLUE, label="Pareto front")
    h1 = _published_h1(published)
    points = [(row["speedup"], row["quality"] / row["teacher_quality"]) for row in h1]
    tag(
        axes.plot([x for x, _ in points], [y for _, y in points], "x", color=ORANGE, label=_PUBLISHED),
        PUBLISHED,
    )
    hover_points(
        axes, [(*own, _published_title(row), PUBLISHED) for own, row in zip(points, h1, strict=True)]
    )
    # The published teacher is where ours is.
    named = [(own, row["model"]) for own, row in zip(points, h1, strict=True) if row["num_replaced"]]
    labels += [(*own, model, PUBLISHED) for own, model in named]
    axes.set_xlabel("decode speed-up over the teacher, measured")
    axes.set_ylabel("accuracy over the teacher's" if teacher else "accuracy")
    axes.margins(x=0.12)
    _explain_colours(axes)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    label_points(axes, labels)
    return figure


@picture
def quality_over_replaced(leaderboard: Rows, published: Rows, num_layers: int) -> Figure | None:
    """Draw accuracy over the teacher's by the share of layers replaced, the published one beside it."""
    ours = [row for row in leaderboard if row["accuracy"] is not None]
    base = next((row["accuracy"] for row in ours if row["kind"] == "teacher"), None)
    chain = [row for row in ours if row["kind"] in ("teacher", "progressive")]
    if not base or len(ours) < 2 or not num_layers:
        return None
    figure, (axes,) = new_figure(3.4)
    labels = []
    axes.plot([row["num_replaced"] / num_layers for row in chain], [row["accuracy"] / base for row in chain],
              "-", color=BLUE)  # fmt: skip
    for row in ours:
        share, kept, model = row["num_replaced"] / num_layers, row["accuracy"] / base, row["model"]
        colour = BLUE if row in chain else GREEN
        drawn = axes.errorbar(share, kept, yerr=_errors([row], base), fmt="o", ms=4, color=colour, capsize=2)
        tag_errorbar(
            drawn, model, f"{model}: {row['num_replaced']} of {num_layers} replaced, {kept:.3f} kept"
        )
        labels.append((share, kept, model, model))
    h1 = [row for row in _published_h1(published) if row["tokens_b"] is None or "SFT" not in row["model"]]
    points = [(r["num_replaced"] / r["num_layers"], r["quality"] / r["teacher_quality"]) for r in h1]
    if points:
        tag(axes.plot(*zip(*points, strict=True), "x--", color=ORANGE, label=_PUBLISHED), PUBLISHED)
        titles = [(x, y, _published_title(row), PUBLISHED) for (x, y), row in zip(points, h1, strict=True)]
        hover_points(axes, titles)
        labels += [
            (*own, row["model"], PUBLISHED)
            for own, row in zip(points, h1, strict=True)
            if row["num_replaced"]
        ]
    _explain_colours(axes)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    axes.set_xlabel("share of layers without full attention")
    axes.set_ylabel("accuracy over the teacher's")
    axes.margins(x=0.08)
    label_points(axes, labels)
    return figure


def _explain_colours(axes: Axes) -> None:
    for colour, name in ((BLUE, "teacher and H-k"), (GREEN, "other models")):
        axes.plot([], [], "o", ms=4, color=colour, label=name)


@picture
def loss_curves(training: Rows) -> Figure | None:
    """Draw the training loss of every checkpoint over its steps."""
    if not training:
        return None
    figure, (axes,) = new_figure(3.2)
    for model in dict.fromkeys(row["model"] for row in training):
        rows = [row for row in training if row["model"] == model]
        steps, losses = [row["step"] for row in rows], [row["loss_nats"] for row in rows]
        tag(
            axes.plot(steps, losses, label=model),
            model,
            f"{model}: last loss {losses[-1]:.4g} nats per token",
        )
    losses = [row["loss_nats"] for row in training]
    if min(losses) > 0 and max(losses) > 20 * min(losses):
        plain_log(axes)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per token")
    legend_above(axes, columns=6)
    return figure


@picture
def speed_by_context(throughput: Rows) -> Figure | None:
    """Draw decode speed-up over the teacher by context, at the largest batch: measured solid, modelled dashed."""
    decode = [row for row in throughput if row["phase"] == "decode"]
    largest = max((row["batch_size"] for row in decode), default=0)
    decode = [row for row in decode if row["batch_size"] == largest]
    teacher = {_point(row): row for row in decode if row["model"] == "teacher"}
    lines = {}
    for model in dict.fromkeys(row["model"] for row in decode if row["model"] != "teacher"):
        rows = [row for row in decode if row["model"] == model and _point(row) in teacher]
        if rows:
            lines[model] = sorted(rows, key=_point)
    if not lines:
        return None
    figure, (axes,) = new_figure(3.4)
    for index, (model, rows) in enumerate(lines.items()):
        marker = "os^D"[index // NUM_COLOURS % 4]  # colours come round again
        contexts = [row["context_tokens"] for row in rows]
        measured = [speedup(row, teacher[_point(row)]) for row in rows]
        (line,) = axes.plot(contexts, measured, f"{marker}-", ms=3, label=model)
        modelled = [math.nan if row["modelled_speedup"] is None else row["modelled_speedup"] for row in rows]
        tag(axes.plot(contexts, modelled, "--", color=line.get_color()), model)
        tag(
            line,
            model,
            f"{model}: {measured[-1]:.2f}x at {contexts[-1]} tokens, modelled {modelled[-1]:.2f}x",
        )
    axes.set_xscale("log", base=2)
    contexts = sorted({row["context_tokens"] for rows in lines.values() for row in rows})
    axes.set_xticks(contexts, [str(context) for context in contexts])
    axes.set_xlabel(f"context, tokens, at batch {largest} (dashed: modelled)")
    axes.set_ylabel("decode speed-up over the teacher")
    legend_above(axes, columns=6)
    return figure


def _point(row: Row) -> tuple[int, int]:
    return row["context_tokens"], row["batch_size"]


def _errors(rows: Rows, base: float = 1.0) -> list[list[float]]:
    columns = ([row[name] / base for row in rows] for name in ("accuracy", "accuracy_low", "accuracy_high"))
    return error_bars(*columns)


def _with_interval(row: Row) -> str:
    if row["accuracy_low"] is None or row["accuracy_high"] is None:
        return f"{row['accuracy']:.3f}"
    return f"{row['accuracy']:.3f} [{row['accuracy_low']:.3f}, {row['accuracy_high']:.3f}]"


def _published_title(row: Row) -> str:
    return (
        f"{row['model']} (published): {row['quality']} of {row['teacher_quality']}, {row['speedup']}x decode"
    )


def _published_h1(published: Rows) -> list[Row]:
    """Return the published progression's means: rows of single benchmarks left out."""
    return [row for row in published if row["source"] == "h1" and row["benchmark"] is None]
