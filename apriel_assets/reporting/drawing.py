"""How every picture looks: one style, SVG text out, legible on light and dark pages.

Matplotlib without pyplot: no global state, no display. Text and axes are drawn in one grey, which the page
replaces by its own colour.
"""

import functools
import hashlib
import html
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, ParamSpec

import matplotlib
from cycler import cycler
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#7b7b7b"  # text and axes; in a page's SVG it becomes the page's text colour
BLUE, ORANGE, GREEN = "#4a80b8", "#cc6a22", "#338855"
# White letters and both pages' backgrounds stand out from each of these.
MIXER_COLOURS = {"fa": "#3573b8", "swa": "#258153", "gdn": "#b4560f", "kda": "#a04dbc", "mamba": "#cd3951"}
# Each has a contrast of at least 3 to light and dark pages alike.
_LINES = (BLUE, ORANGE, GREEN, "#b05088", "#1f8ba8", "#95800f", "#8866bb", INK)
NUM_COLOURS = len(_LINES)  # of lines, before they come round again
_MOST_NAMED = 18  # lines in a legend
WIDTH = 5.0  # inches: two pictures side by side on a laptop, and still readable on a phone

_STYLE: Any = {
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.2,
    "axes.prop_cycle": cycler(color=_LINES),
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "svg.hashsalt": "apriel",  # the same rows give the same bytes
    "text.parse_math": False,  # names come from data: a $ in one is a $
}

PUBLISHED = "published figures"  # what can be hidden beside models
_TAG = "tagged."
_TAGGED = re.compile(r'<g id="tagged\.([0-9a-f]+)">')
_NUMBERED = re.compile(r'<g id="[\w.]+">')

Options = ParamSpec("Options")
Box = tuple[float, float, float, float]  # left, bottom, right, top


def picture(draw: Callable[Options, Figure | None]) -> Callable[Options, str]:
    """Make a function that draws a figure return its SVG, and an empty string for no figure."""

    @functools.wraps(draw)
    def drawn(*args: Options.args, **kwargs: Options.kwargs) -> str:
        with matplotlib.rc_context(_STYLE):
            figure = draw(*args, **kwargs)
            return "" if figure is None else _svg(figure)

    return drawn


def new_figure(height: float, *, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure of the common width and its axes, one below the other; `height` in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, [figure.add_subplot(rows, 1, row + 1) for row in range(rows)]


def plain_log(axes: Axes, which: Literal["x", "y"] = "y") -> None:
    """Make an axis logarithmic, its ticks written as plain numbers."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


def error_bars(
    values: Sequence[float], lows: Sequence[float | None], highs: Sequence[float | None]
) -> list[list[float]]:
    """Return the distances to the ends of the intervals, below and above; zero where there is none."""
    below = [0.0 if low is None else max(0.0, value - low) for value, low in zip(values, lows, strict=True)]
    above = [
        0.0 if high is None else max(0.0, high - value) for value, high in zip(values, highs, strict=True)
    ]
    return [below, above]


def toggle_class(name: str) -> str:
    """Return the CSS class of what belongs to a model, or to another name that a page can hide."""
    return "t-" + hashlib.sha256(name.encode()).hexdigest()[:8]


def tag(artists: Artist | Iterable[Artist | None], name: str | None = None, title: str | None = None) -> None:
    """Mark what is drawn: whose it is, so that a page can hide it, and what to say when it is pointed at."""
    mark = _TAG + json.dumps([name, title]).encode().hex()  # of any name an id that stands as it is in XML
    for artist in [artists] if isinstance(artists, Artist) else artists:
        if artist is not None:
            artist.set_gid(mark)


def tag_errorbar(container: Any, name: str | None = None, title: str | None = None) -> None:
    """Mark all parts of what `Axes.errorbar` drew."""
    line, caps, bars = container.lines
    tag([line, *caps, *bars], name, title)


def hover_points(axes: Axes, points: Iterable[tuple[float, float, str, str | None]]) -> None:
    """Lay an invisible mark over points that are drawn together, so that each says its own.

    Args:
        axes: with the points drawn.
        points: x, y, what to say, and whose it is.
    """
    for x, y, title, name in points:
        # With a colour of its own, so that the next line does not get another.
        tag(axes.plot(x, y, "o", ms=9, alpha=0.0, color=INK, label="_nolegend_"), name, title)


def legend_above(axes: Axes, *, columns: int) -> None:
    """Name the lines where the names cover none; not if they are many: then each says its name when pointed at."""
    if len(axes.get_legend_handles_labels()[1]) <= _MOST_NAMED:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=columns,
            fontsize=7,
            columnspacing=1,
            handlelength=1.5,
        )


def diagonal(axes: Axes) -> None:
    """Give both axes the same range, and draw the line on which they say the same."""
    limits = [*axes.get_xlim(), *axes.get_ylim()]
    ends = min(limits), max(limits)
    axes.plot(ends, ends, ":", color=INK, lw=1, zorder=0)
    axes.set(xlim=ends, ylim=ends)


_LEADER = {"arrowstyle": "-", "lw": 0.5, "color": INK, "shrinkA": 0, "shrinkB": 3}


def label_points(axes: Axes, points: Sequence[tuple[float, float, str, str | None]]) -> None:
    """Write points' names beside them, where they cover neither points nor each other if that can be had.

    A name that finds no room beside its point stands further off, at the end of a thin line.

    Args:
        axes: with everything else drawn.
        points: x, y, name, and whose it is, for pages that can hide it.
    """
    axes.get_figure(root=True).draw_without_rendering()  # type: ignore[union-attr]  settles limits and layout
    to_points = 72 / axes.figure.dpi
    places = axes.transData.transform([(x, y) for x, y, *_ in points]) * to_points
    left, bottom, _, top = (edge * to_points for edge in axes.bbox.extents)
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in places]
    for (x, y), (at_x, at_y, name, whose) in zip(places, points, strict=True):
        width = 5.0 * len(name)  # of text at 8 points, roughly
        beside, off = _label_offsets(width)
        boxes = {(dx, dy): (x + dx, y + dy, x + dx + width, y + dy + 8) for dx, dy in (*beside, *off)}
        inside = [own for own, box in boxes.items() if left < box[0] and bottom < box[1] and box[3] < top + 6]
        # Nearest first, so of several that are free the nearest.
        best = min(inside or boxes, key=lambda own: sum(_overlap(boxes[own], other) for other in taken))
        taken.append(boxes[best])
        anchor, share = _anchor(best[0], width)
        label = axes.annotate(
            name,
            (at_x, at_y),
            xytext=(best[0] + share * width, best[1]),
            textcoords="offset points",
            fontsize=8,
            ha=anchor,
            va="bottom",
            arrowprops=None if best in beside else _LEADER,
        )
        tag(label, whose)


def _label_offsets(width: float) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Return where a name may stand beside its point, and where off it, nearest first.

    Each is its lower left corner relative to the point, in points.
    """
    right, left = ([(dx, dy) for dy in (3.0, -11.0, -4.0)] for dx in (5.0, -5 - width))
    off = []
    for reach in (14.0, 24.0, 34.0, 46.0):
        off += [(dx, dy) for dx in (reach, -reach - width, -width / 2) for dy in (reach, -reach - 8)]
    return [*right, (-width / 2, 5.0), (-width / 2, -13.0), *left], off


def _anchor(dx: float, width: float) -> tuple[Literal["left", "center", "right"], float]:
    """Return the end of a name that is next to its point, and how far along the name that is, from 0 to 1."""
    if dx > 0:
        return "left", 0.0
    return ("right", 1.0) if dx < -width else ("center", 0.5)


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    # Matplotlib numbers its groups anew in every picture: on one page their ids would not be unique.
    return _NUMBERED.sub("<g>", _TAGGED.sub(_group, text[text.index("<svg") :]))


def _group(found: re.Match[str]) -> str:
    name, title = json.loads(bytes.fromhex(found.group(1)))
    classes = f' class="{toggle_class(name)}"' if name else ""
    return f"<g{classes}>" + (f"<title>{html.escape(title)}</title>" if title else "")
