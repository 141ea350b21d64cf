"""Weight bytes from shapes: a real model's tensors, nesting by hand."""

import pytest

from apriel_assets.evaluation.roofline import ModelShape, mixer_parameters
from apriel_assets.serving.hosting import hosted_weight_bytes, hosted_weight_bytes_of_counts
from apriel_assets.serving.shards import tensors_of
from tests.serving.conftest import make_model

SHAPE = ModelShape(
    hidden_size=64,
    num_heads=4,
    num_kv_heads=2,
    head_size=16,
    intermediate_size=96,
    vocab_size=50,
    weight_bytes=2,
)


def test_a_real_models_tensors_but_for_norms_and_biases():
    model = make_model()
    shape = ModelShape.from_config(model.config.get_text_config(), weight_bytes=4)
    skipped = ("norm", "bias", "A_log", "dt_bias", ".D")
    real = sum(
        tensor.nbytes for name, tensor in tensors_of(model).items() if not any(own in name for own in skipped)
    )
    found = hosted_weight_bytes(shape, model.placements.values())
    assert found == pytest.approx(real, rel=0.02)


def test_what_is_shared_counts_once():
    one = hosted_weight_bytes(SHAPE, [("fa", "fa")])
    both = hosted_weight_bytes(SHAPE, [("fa", "fa"), ("fa", "gdn"), ("gdn", "gdn")])
    assert both - one == 2 * 2 * mixer_parameters(SHAPE, "gdn")


def test_least_and_most_by_hand():
    counts = [{"fa": 2, "gdn": 2}, {"fa": 1, "gdn": 3}]
    least, most = hosted_weight_bytes_of_counts(SHAPE, 4, counts)
    assert least == hosted_weight_bytes(
        SHAPE, [("fa",) * 4, ("gdn",) * 2 + ("fa",) * 2, ("gdn",) * 3 + ("fa",)]
    )
    assert most == hosted_weight_bytes(
        SHAPE, [("fa",) * 4, ("gdn",) * 2 + ("fa",) * 2, ("fa",) + ("gdn",) * 3]
    )
