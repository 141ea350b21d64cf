"""Pictures of result tables as SVG text, legible on light and dark pages.

Matplotlib without pyplot: no global state, no display. Every function takes rows and returns one SVG, or an empty
string when there is nothing to draw.
"""

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

GREY, BLUE, ORANGE, GREEN = "#7a7a7a", "#4477aa", "#dd7733", "#338855"
_STYLE = {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "apriel"}

Rows = Sequence[dict]


def layer_map(placements: dict[str, Sequence[str]], per_row: int = 10) -> str:
    """Draw each model's layers, ten a row, counted from 0: full attention filled, replaced layers hollow."""
    if not placements:
        return ""
    lines = {name: -(-len(placement) // per_row) for name, placement in placements.items()}
    figure, axes = _figure(6.4, 0.34 * (sum(lines.values()) + 0.5 * len(lines)) + 0.3)
    y, ticks = 0.0, []
    for name, placement in placements.items():
        ticks.append((y, name))
        for layer, mixer in enumerate(placement):
            row, column = divmod(layer, per_row)
            full = mixer == "fa"
            axes.text(
                column,
                y + row,
                "FA" if full else mixer,
                ha="center",
                va="center",
                fontsize=7,
                color="white" if full else GREY,
                bbox={
                    "boxstyle": "round,pad=0.35",
                    "fc": BLUE if full else "none",
                    "ec": BLUE if full else GREY,
                },
            )
        y += lines[name] + 0.5
    axes.set_xlim(-0.7, min(per_row, max(len(p) for p in placements.values())) - 0.3)
    axes.set_ylim(y - 0.6, -0.7)
    axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks])
    axes.set_xticks([])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return _svg(figure)


def rankings(layer_scores: Rows, probes: Rows) -> str:
    """Draw importance by layer: leave-one-out on top, the probes of each step below, easiest layers marked."""
    steps = sorted({row["step"] for row in probes}, key=lambda step: (len(step), step))
    panels = [("leave-one-out", list(layer_scores), "importance")] if layer_scores else []
    panels += [(f"probes for {s}", [row for row in probes if row["step"] == s], "loss_nats") for s in steps]
    if not panels:
        return ""
    num_layers = 1 + max(row["layer"] for _, rows, _ in panels for row in rows)
    figure = Figure(figsize=(6.4, 1.25 * len(panels) + 0.5), layout="constrained")
    for position, (title, rows, value) in enumerate(panels, start=1):
        axes = _style(figure.add_subplot(len(panels), 1, position))
        easiest = min(row["rank"] for row in rows)
        colours = [ORANGE if row["rank"] == easiest else BLUE for row in rows]
        axes.bar([row["layer"] for row in rows], [row[value] for row in rows], color=colours, width=0.7)
        positive = [row[value] for row in rows if row[value] > 0]
        if positive and max(positive) > 50 * min(positive):
            axes.set_yscale("log")
        axes.set_xlim(-0.6, num_layers - 0.4)
        axes.set_title(title, loc="left", fontsize=9, color=GREY)
        axes.set_ylabel("nats", color=GREY)
    axes.set_xlabel("layer (orange: easiest)", color=GREY)
    return _svg(figure)


def quality_against_speed(leaderboard: Rows, published: Rows) -> str:
    """Draw accuracy against measured decode speed-up with intervals, the published H1 points beside them."""
    ours = [row for row in leaderboard if row["accuracy"] is not None and row["decode_speedup"] is not None]
    if not ours:
        return ""
    figure, axes = _figure(6.4, 3.4)
    for row in ours:
        error = [[row["accuracy"] - row["accuracy_low"]], [row["accuracy_high"] - row["accuracy"]]]
        colour = BLUE if row["kind"] in ("teacher", "progressive") else GREEN
        axes.errorbar(row["decode_speedup"], row["accuracy"], yerr=error, fmt="o", color=colour, capsize=2)
        _label(axes, row["model"], row["decode_speedup"], row["accuracy"])
    h1 = [row for row in published if row["source"] == "h1" and row["speedup"] and row["quality"]]
    h1 = [row for row in h1 if not row.get("benchmark")]
    axes.plot(
        [r["speedup"] for r in h1],
        [r["quality"] for r in h1],
        "x",
        color=ORANGE,
        label="published (15B, 50 layers)",
    )
    axes.set_xlabel("decode speed-up over the teacher, measured", color=GREY)
    axes.set_ylabel("accuracy", color=GREY)
    if h1:
        axes.legend(frameon=False, labelcolor=GREY)
    return _svg(figure)


def quality_over_replaced(leaderboard: Rows, published: Rows, num_layers: int) -> str:
    """Draw quality over the share of layers replaced, as a share of the teacher's; published points beside it."""
    ours = [
        row
        for row in leaderboard
        if row["accuracy"] is not None and row["kind"] in ("teacher", "progressive")
    ]
    teacher = next((row for row in ours if row["kind"] == "teacher"), None)
    if teacher is None or len(ours) < 2 or not teacher["accuracy"]:
        return ""
    figure, axes = _figure(6.4, 3.0)
    base = teacher["accuracy"]
    shares = [row["num_replaced"] / num_layers for row in ours]
    values = [row["accuracy"] / base for row in ours]
    errors = [
        [(row["accuracy"] - row["accuracy_low"]) / base for row in ours],
        [(row["accuracy_high"] - row["accuracy"]) / base for row in ours],
    ]
    axes.errorbar(shares, values, yerr=errors, fmt="o-", color=BLUE, capsize=2, label="here")
    h1 = [
        r
        for r in published
        if r["source"] == "h1" and not r.get("benchmark") and r["quality"] and r["num_layers"]
    ]
    if h1:
        top = max(row["quality"] for row in h1)
        points = sorted((r["num_replaced"] / r["num_layers"], r["quality"] / top) for r in h1)
        axes.plot(*zip(*points, strict=True), "x--", color=ORANGE, label="published (15B, 50 layers)")
    axes.set_xlabel("share of layers without full attention", color=GREY)
    axes.set_ylabel("accuracy / teacher's", color=GREY)
    axes.legend(frameon=False, labelcolor=GREY)
    return _svg(figure)


def loss_curves(training: Rows) -> str:
    """Draw every checkpoint's training loss over its steps, on a log scale."""
    if not training:
        return ""
    figure, axes = _figure(6.4, 3.0)
    for model in dict.fromkeys(row["model"] for row in training):
        rows = [row for row in training if row["model"] == model]
        axes.plot([r["step"] for r in rows], [max(r["loss_nats"], 1e-6) for r in rows], lw=1.2, label=model)
    axes.set_yscale("log")
    axes.set_xlabel("step", color=GREY)
    axes.set_ylabel("loss, nats per token", color=GREY)
    axes.legend(frameon=False, labelcolor=GREY, ncols=3)
    return _svg(figure)


def speed_by_context(throughput: Rows) -> str:
    """Draw decode speed-up over the teacher by context: measured solid, modelled dashed."""
    decode = [row for row in throughput if row["phase"] == "decode"]
    teacher = {row["context_tokens"]: row["tokens_per_s"] for row in decode if row["model"] == "teacher"}
    models = [name for name in dict.fromkeys(row["model"] for row in decode) if name != "teacher"]
    if not teacher or not models:
        return ""
    figure, axes = _figure(6.4, 3.0)
    for model in models:
        rows = sorted((r for r in decode if r["model"] == model), key=lambda r: r["context_tokens"])
        rows = [row for row in rows if row["context_tokens"] in teacher]
        contexts = [row["context_tokens"] for row in rows]
        measured = [row["tokens_per_s"] / teacher[row["context_tokens"]] for row in rows]
        (line,) = axes.plot(contexts, measured, "o-", ms=3, lw=1.2, label=model)
        axes.plot(contexts, [row["modelled_speedup"] for row in rows], "--", lw=1, color=line.get_color())
    axes.set_xscale("log", base=2)
    axes.set_xlabel("context, tokens (dashed: modelled from bytes)", color=GREY)
    axes.set_ylabel("decode speed-up", color=GREY)
    axes.legend(frameon=False, labelcolor=GREY, ncols=3)
    return _svg(figure)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, _style(figure.add_subplot())


def _style(axes: Axes) -> Axes:
    axes.set_facecolor("none")
    axes.tick_params(colors=GREY)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(GREY)
    return axes


def _label(axes: Axes, text: str, x: float, y: float) -> None:
    axes.annotate(text, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8, color=GREY)


def _svg(figure: Figure) -> str:
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
