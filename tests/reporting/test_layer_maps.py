import re

import pytest

from apriel_assets.hybrid.placement import MIXERS
from apriel_assets.reporting.drawing import INK, MIXER_COLOURS
from apriel_assets.reporting.layer_maps import counts_text, layer_map, mixer_legend
from tests.reporting.svg_text import texts


def contrast(one, other):
    """The ratio of the web accessibility guidelines, 1 to 21."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_ten_a_row_and_first_layer_first():
    svg = layer_map(["fa"] * 11 + ["mamba", "swa"])
    assert texts(svg) == ["F"] * 11 + ["M", "S"]
    assert re.findall(r'<rect x="\d+" y="(\d+)"', svg) == ["2"] * 10 + ["26"] * 3
    assert re.findall(r'<rect x="(\d+)"', svg)[9:11] == ["218", "2"]
    assert "layer 11: mamba" in svg


def test_every_mixer_has_its_own_letter_and_its_own_colour():
    svg = layer_map(MIXERS)
    assert len(set(texts(svg))) == len(MIXERS)
    assert len(set(re.findall(r'<rect[^>]* fill="(#\w+)"', svg))) == len(MIXERS)


@pytest.mark.parametrize("colour", MIXER_COLOURS.values())
def test_letters_and_squares_can_be_seen_on_light_and_dark_pages(colour):
    assert contrast(colour, "#ffffff") >= 4.5
    assert contrast(colour, "#202024") >= 3


def test_an_unknown_mixer_is_hollow_and_its_name_stays_text():
    svg = layer_map(["fa", "<b>&"])
    assert texts(svg) == ["F", "<"]
    assert f'fill="none" stroke="{INK}"' in svg
    assert "<b>" not in svg


def test_legend_names_the_mixers_in_use_once():
    legend = mixer_legend([["kda", "fa"], ["fa", "swa"], ["mystery"]])
    assert [name for _, name in legend] == [
        "full attention",
        "sliding window",
        "Kimi Delta Attention",
        "mystery",
    ]
    assert [texts(square) for square, _ in legend] == [["F"], ["S"], ["K"], ["M"]]


def test_counts_in_words():
    assert counts_text(["swa", "fa", "swa", "odd"]) == "1 fa, 2 swa, 1 odd"
    assert counts_text([]) == ""


def test_no_layers_no_map():
    assert layer_map([]) == ""
    assert mixer_legend([]) == []
