"""Costs of mixers on a GPU: a graph's steps are the device's work, so they follow what a step must read."""

import pytest
import torch

from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.search import measured_steps
from apriel_assets.search.config import CostsConfig
from apriel_assets.search.cost_check import check_costs
from apriel_assets.search.measured import measure_mixer
from tests.hybrid.tiny_teachers import tiny_teacher

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SIZES = {"hidden_size": 128, "head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
# Full attention's caches take 256 and 1,024 MiB a layer: reading them takes far longer than a launch.
CONTEXTS = (16384, 65536)
CONFIG = CostsConfig(phase="decode", contexts=CONTEXTS, batch_size=32, repeats=3, decode_tokens=4)


def make_hybrid(num_layers, mixers=()):
    teacher = tiny_teacher(num_hidden_layers=num_layers, **SIZES)
    model = HybridForCausalLM.from_teacher(teacher, copy=False).eval()
    for mixer in mixers:
        model.convert(range(num_layers), mixer, keep=True)
    model.set_placement(("fa",) * num_layers)
    return model.to("cuda", torch.bfloat16)


def seconds(mixer, num_layers=4):
    model = make_hybrid(num_layers)
    rows = measure_mixer(model, mixer, CONFIG, device_name="gpu").to_pylist()
    assert [row["context_tokens"] for row in rows] == list(CONTEXTS)
    return [row["seconds"] for row in rows]


def test_full_attention_takes_longer_over_a_longer_context():
    short, long = seconds("fa")
    assert long > 2 * short  # four times the bytes


@pytest.mark.parametrize("mixer", ["swa", "gdn", "kda", "mamba"])
def test_a_mixer_with_a_fixed_state_does_not(mixer):
    short, long = seconds(mixer)
    assert long < 2 * short
    assert long < seconds("fa")[-1]


def test_a_layers_seconds_do_not_depend_on_how_many_are_timed():
    """Twice as many layers take twice as long: nothing but the layers is in the figure."""
    few, many = seconds("fa", 3)[-1], seconds("fa", 6)[-1]
    assert 0.67 < few / many < 1.5


def test_whole_models_take_what_their_layers_took():
    model = make_hybrid(6, ("swa", "gdn"))
    assert measured_steps.replays(model)
    costs = [
        row
        for mixer in ("swa", "gdn")
        for row in measure_mixer(model, mixer, CONFIG, device_name="gpu").to_pylist()
    ]
    placements = [("fa", "gdn", "fa", "swa", "gdn", "fa"), ("gdn",) * 6]
    rows = check_costs(model, placements, costs, CONFIG, device_name="gpu").table.to_pylist()
    for row in rows:
        assert 0 < row["measured"] < 1.1
