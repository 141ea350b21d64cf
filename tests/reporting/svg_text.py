"""What a reader sees of an SVG."""

import re
from xml.etree import ElementTree


def texts(svg):
    """The words of an SVG; fails if it is not well-formed XML."""
    return [
        "".join(node.itertext()).strip()
        for node in ElementTree.fromstring(svg).iter()
        if node.tag.endswith("}text")
    ]


def markers(svg, style):
    """Where markers with this in their style are, in points, y downwards: those in the axes, not the legend's."""
    return [
        (float(node.get("x", "")), float(node.get("y", "")))
        for group in ElementTree.fromstring(svg).iter()
        if group.get("clip-path")
        for node in group
        if node.tag.endswith("}use") and style in node.get("style", "")
    ]


def line_ends(svg, colour):
    """The first and the last point of the longest line of this colour, in points, y downwards."""
    paths = [
        re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", node.get("d", ""))
        for node in ElementTree.fromstring(svg).iter()
        if node.tag.endswith("}path") and f"stroke: {colour}" in node.get("style", "")
    ]
    longest = max(paths, key=len)
    return [tuple(map(float, longest[end])) for end in (0, -1)]
