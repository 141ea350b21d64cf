import pytest

from apriel_assets.reporting.drawing import MIXER_COLOURS
from apriel_assets.reporting.supernet_figures import output_errors, probe_curves, sampled_loss
from tests.reporting.svg_text import line_ends, texts


@pytest.fixture
def curves(h2):
    return h2["supernet_curves"].to_pylist()


def test_every_probe_is_named_and_the_axes_have_units(curves):
    words = texts(probe_curves(curves))
    assert {"all_swa", "all_gdn", "all_kda", "all_mamba", "random_0"} <= set(words)
    assert not [word for word in words if word.startswith("mixer_")]
    assert {"step", "KL(placement || teacher), nats per token"} <= set(words)
    words = texts(output_errors(curves))
    assert {"mixer_swa", "mixer_mamba", "step"} <= set(words)
    assert not [word for word in words if word.startswith("all_")]


def test_zeros_that_a_logarithm_cannot_show_are_said(curves):
    assert "all_fa: 0 throughout" in texts(probe_curves(curves))
    late = [{**row, "kl_nats": 0.0} if row["step"] < 90 and row["kl_nats"] else row for row in curves]
    assert "all_kda (0 not shown)" in texts(probe_curves(late))
    narrow = [row for row in curves if row["probe"] in ("all_fa", "all_mamba")]
    assert "all_fa" in texts(probe_curves(narrow))


@pytest.mark.parametrize("draw", [probe_curves, output_errors])
def test_a_starving_mixer_stays_up_while_the_others_fall(curves, draw):
    svg = draw(curves)
    falls = {}
    for mixer in ("swa", "gdn", "kda", "mamba"):
        start, end = line_ends(svg, MIXER_COLOURS[mixer])
        falls[mixer] = end[1] - start[1]  # downwards on the page
    assert abs(falls.pop("mamba")) < 1
    assert min(falls.values()) > 50


def test_one_row_or_none_are_fine(curves):
    first = [row for row in curves if row["step"] == 0]
    assert texts(probe_curves(first))
    assert texts(output_errors(first))
    assert probe_curves([]) == output_errors([]) == sampled_loss([]) == ""
    assert probe_curves([row for row in curves if row["kl_nats"] is None]) == ""


@pytest.mark.parametrize("steps", [1, 2, 19, 41, 300])
def test_loss_of_any_length(h2, steps):
    rows = h2["training"].to_pylist()[:steps]
    assert {"step", "loss, nats per token"} <= set(texts(sampled_loss(rows)))


def test_names_stay_text(curves):
    rows = [{**row, "probe": "<i>$"} for row in curves if row["probe"] == "all_mamba"]
    assert "<i>$" in texts(probe_curves(rows))
