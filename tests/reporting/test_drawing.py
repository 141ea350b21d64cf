import itertools
import re
from xml.etree import ElementTree

import pytest
from matplotlib.text import Text

from apriel_assets.reporting import drawing
from apriel_assets.reporting.drawing import (
    hover_points,
    label_points,
    new_figure,
    picture,
    tag,
    tag_errorbar,
    toggle_class,
)

HOSTILE = "<b>\"'&$\\frac{$é"
LIGHT, DARK = ("#ffffff", "#f6f6f8"), ("#17171a", "#202024")


@picture
def drawn(name):
    figure, (axes,) = new_figure(2)
    tag_errorbar(axes.errorbar([1], [2], yerr=[[1], [1]], capsize=2), name, f"{name}: 2")
    tag(axes.plot([1, 2], [1, 2]), "other")
    hover_points(axes, [(1.0, 1.0, "first", None), (2.0, 2.0, "second", name)])
    return figure


@pytest.mark.parametrize("name", ["h6", HOSTILE])
def test_what_is_tagged_has_its_class_and_its_title(name):
    svg = drawn(name)
    root = ElementTree.fromstring(svg)
    groups = [node for node in root.iter() if node.get("class") == toggle_class(name)]
    assert len(groups) >= 4  # point, two caps, bar, and the invisible mark
    titles = ["".join(node.itertext()) for node in root.iter() if node.tag.endswith("}title")]
    assert f"{name}: 2" in titles
    assert {"first", "second"} <= set(titles)
    assert len([node for node in root.iter() if node.get("class") == toggle_class("other")]) == 1


def test_classes_tell_names_apart_and_are_valid():
    names = ["h6", "h7", "b0.6", "b0.45", HOSTILE, "published figures"]
    classes = {toggle_class(name) for name in names}
    assert len(classes) == len(names)
    assert all(re.fullmatch(r"t-[0-9a-f]{8}", own) for own in classes)


def test_groups_have_no_ids_that_a_second_picture_would_repeat():
    assert '<g id="' not in drawn("h6")


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("page", [*LIGHT, *DARK])
def test_every_colour_of_a_line_stands_out_from_the_page(page):
    # WCAG 2.2, 1.4.11: 3 to 1 for what is not text.
    for colour in (*drawing._LINES, *drawing.MIXER_COLOURS.values()):
        assert contrast(colour, page) >= 3, colour


def test_points_to_hover_over_take_no_colour_from_the_lines():
    @picture
    def two_lines():
        figure, (axes,) = new_figure(2)
        for _ in range(2):
            axes.plot([1, 2], [1, 2])
            hover_points(axes, [(1.0, 1.0, "one", None)] * 3)
        return figure

    assert all(f"stroke: {colour}" in two_lines() for colour in drawing._LINES[:2])


def test_names_in_a_crowd_do_not_cover_each_other_and_say_whose_they_are():
    figure, (axes,) = new_figure(3.4)
    axes.plot([1, 4], [0, 1], "o")
    label_points(axes, [(2 + index / 50, 0.9, f"turbo-{index}", None) for index in range(9)])
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # of an annotation: with its line
    assert not [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    lines = [text.arrow_patch is not None for text in axes.texts]
    assert any(lines), "the crowd is too thick for all of them"
    assert not lines[0], "the first finds room beside its point"
