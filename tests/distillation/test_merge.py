"""Weight merges by hand arithmetic."""

import math

import pytest
import torch

from apriel_assets.distillation.merge import merge_checkpoints, merge_weights
from apriel_assets.errors import UserError
from tests.scoring.tiny_hybrid import make_hybrid


def merged(a, b, **settings):
    result = merge_weights({"x": torch.tensor(a)}, {"x": torch.tensor(b)}, **settings)["x"]
    return result.tolist()


def test_linear_by_hand():
    assert merged([1.0, 2.0], [3.0, -2.0], weight=0.25) == [1.5, 1.0]


def test_slerp_of_a_right_angle_by_hand():
    # a third of 90 degrees from (1, 0) to (0, 1) is 30 degrees
    expected = [math.cos(math.pi / 6), math.sin(math.pi / 6)]
    assert merged([1.0, 0.0], [0.0, 1.0], method="slerp", weight=1 / 3) == pytest.approx(expected, abs=1e-6)


def test_slerp_keeps_the_norm_where_linear_sags():
    middle = torch.tensor(merged([0.0, 5.0], [3.0, 4.0], method="slerp"))
    assert middle.norm().item() == pytest.approx(5.0, abs=1e-5)
    assert torch.tensor(merged([0.0, 5.0], [3.0, 4.0])).norm().item() < 4.99


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_ends_are_the_checkpoints_themselves(method):
    a, b = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    for weight, end in ((0.0, a), (1.0, b)):
        torch.testing.assert_close(merge_weights({"x": a}, {"x": b}, method=method, weight=weight)["x"], end)


@pytest.mark.parametrize("b", [[2.0, 4.0], [-1.0, -2.0], [0.0, 0.0]])
def test_slerp_of_parallel_opposite_or_zero_tensors_is_linear(b):
    assert merged([1.0, 2.0], b, method="slerp", weight=0.25) == merged([1.0, 2.0], b, weight=0.25)


def test_slerp_of_near_parallel_tensors_is_close_to_linear():
    # an angle of 0.01: chord and arc differ by less than its square
    a, b = [1.0, 0.0], [math.cos(0.01), math.sin(0.01)]
    assert merged(a, b, method="slerp") == pytest.approx(merged(a, b), abs=1e-4)


def test_keeps_dtype_and_integers():
    a = {"w": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor(3)}
    result = merge_weights(a, {"w": torch.zeros(2, dtype=torch.bfloat16), "n": torch.tensor(5)})
    assert result["w"].dtype == torch.bfloat16
    assert result["w"].tolist() == [0.5, 0.5]
    assert result["n"].item() == 3


@pytest.mark.parametrize(
    ("other", "settings", "message"),
    [
        ({"y": torch.ones(2)}, {}, "in one checkpoint only"),
        ({"x": torch.ones(3)}, {}, r"x is \[2\] in one, \[3\]"),
        ({"x": torch.ones(2)}, {"weight": 1.5}, "weight 1.5"),
        ({"x": torch.ones(2)}, {"method": "average"}, "'average' is unknown"),
    ],
)
def test_refuses(other, settings, message):
    with pytest.raises(UserError, match=message):
        merge_weights({"x": torch.ones(2)}, other, **settings)


@pytest.mark.parametrize("tied", [False, True])
def test_a_merged_checkpoint_lies_between_its_parents_and_leaves_them_alone(tied):
    base, other = (
        make_hybrid("llama_tied" if tied else "llama"),
        make_hybrid("llama_tied" if tied else "llama"),
    )
    for model in (base, other):
        model.convert([1], "mamba")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    merged = merge_checkpoints(base, other, weight=0.25)
    assert merged.placement == ("fa", "mamba", "fa")
    for (name, parameter), start in zip(merged.named_parameters(), base.parameters(), strict=True):
        torch.testing.assert_close(parameter, start + 0.25, msg=name)
    assert base.lm_head.weight.data_ptr() != merged.lm_head.weight.data_ptr()


def test_refuses_two_placements():
    base, other = make_hybrid(), make_hybrid()
    other.convert([1], "mamba")
    with pytest.raises(UserError, match=r"differ at \[1\]"):
        merge_checkpoints(base, other)
