"""Tiny inline pictures for places that show Markdown: under 1,000 characters, whatever the data."""

import base64
import itertools
import math
from collections.abc import Sequence

_WIDTH, _HEIGHT = 240, 40
_MOST_POINTS, _MOST_BARS = 48, 50


def markdown_sparkline(values: Sequence[float], *, bars: bool = False) -> str:
    """Return the sparkline as a Markdown image. Dagster's pages drop SVG elements, but show images from data."""
    encoded = base64.b64encode(sparkline(values, bars=bars).encode()).decode()
    return f"![curve](data:image/svg+xml;base64,{encoded})"


def sparkline(values: Sequence[float], *, bars: bool = False) -> str:
    """Return an SVG of a curve, or of bars, from the first value to the last; the scale starts at zero.

    Longer series are thinned to means of neighbours; what is not a number is left out.
    """
    values = [value for value in values if math.isfinite(value)]
    points = _thinned(values, _MOST_BARS if bars else _MOST_POINTS)
    top = max(points, default=0.0) or 1.0
    heights = [round(_HEIGHT * max(0.0, value) / top) for value in points]
    step = _WIDTH / max(1, len(points) if bars else len(points) - 1)
    if bars:
        path = "".join(f"M{i * step + step / 2:.0f} {_HEIGHT}v-{height}" for i, height in enumerate(heights))
        stroke = max(1, int(step * 0.7))
    else:
        path = "M" + "L".join(f"{i * step:.0f} {_HEIGHT - height}" for i, height in enumerate(heights))
        stroke = 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}">'
        f'<path d="{path}" fill="none" stroke="#4477aa" stroke-width="{stroke}"/></svg>'
    )


def _thinned(values: Sequence[float], limit: int) -> list[float]:
    if len(values) <= limit:
        return list(values)
    edges = [round(index * len(values) / limit) for index in range(limit + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
