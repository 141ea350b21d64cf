"""Merge the weights of two checkpoints of one placement: between them lies a model that keeps both's
strengths.

Linear: (1 - w) a + w b. Slerp, per tensor, walks the arc between the directions instead of the chord, so that
the norm does not sag in the middle:

    slerp(a, b; w) = sin((1 - w) theta) / sin(theta) a + sin(w theta) / sin(theta) b
    cos(theta) = a.b / (|a| |b|)

Source: Shoemake, "Animating Rotation with Quaternion Curves", SIGGRAPH 1985. Checkpoints of one training run
differ by small angles, where the arc is nearly the chord.
"""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from apriel_assets.errors import UserError

if TYPE_CHECKING:
    from apriel_assets.hybrid.model import HybridForCausalLM

MergeMethod = Literal["linear", "slerp"]

# Below this angle (radians) sin(theta) loses digits and the arc differs from the chord by less than fp32 can
# tell.
_SMALL_ANGLE = 1e-3


def merge_checkpoints(
    base: "HybridForCausalLM",
    other: "HybridForCausalLM",
    *,
    method: MergeMethod = "linear",
    weight: float = 0.5,
) -> "HybridForCausalLM":
    """Return a new model between `base` (weight 0) and `other` (weight 1).

    Raises:
        UserError: placements, tensors or shapes differ.
    """
    if base.placement != other.placement:
        layers = [
            i
            for i, pair in enumerate(zip(base.placement, other.placement, strict=False))
            if len(set(pair)) > 1
        ]
        raise UserError(
            f"cannot merge checkpoints of two placements: they have {len(base.placement)} and"
            f" {len(other.placement)} layers and differ at {layers}; merge checkpoints of one H-k step"
        )
    merged = copy.deepcopy(base)
    merged.load_state_dict(merge_weights(base.state_dict(), other.state_dict(), method=method, weight=weight))
    return merged


def merge_weights(
    base: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    *,
    method: MergeMethod = "linear",
    weight: float = 0.5,
) -> dict[str, Tensor]:
    """Return the tensors between `base` (weight 0) and `other` (weight 1), computed in fp32, in base's
    dtypes.

    Raises:
        UserError: tensors or shapes differ, the weight is outside [0, 1], or the method is unknown.
    """
    if not 0 <= weight <= 1:
        raise UserError(
            f"merge weight {weight} is not allowed; give a number between 0 (first) and 1 (second)"
        )
    if method not in ("linear", "slerp"):
        raise UserError(f"merge method {method!r} is unknown; methods are linear, slerp")
    if odd := sorted(base.keys() ^ other.keys()):
        raise UserError(f"cannot merge: {len(odd)} tensors are in one checkpoint only (e.g. {odd[0]})")
    for name, tensor in base.items():
        if tensor.shape != other[name].shape:
            raise UserError(
                f"cannot merge: {name} is {list(tensor.shape)} in one, {list(other[name].shape)} in the other"
            )
    between = _linear if method == "linear" else _slerp
    return {
        name: between(tensor.float(), other[name].float(), weight).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in base.items()
    }


def _linear(a: Tensor, b: Tensor, weight: float) -> Tensor:
    # Exact at both ends, which a + w (b - a) is not.
    return (1 - weight) * a + weight * b


def _slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    # fp64: near parallel, acos of an fp32 cosine is off by more than the angle.
    x, y = a.double().flatten(), b.double().flatten()
    norms = x.norm() * y.norm()
    theta = torch.acos((x @ y / norms).clamp(-1, 1)) if norms > 0 else torch.zeros(())
    # Parallel: the arc is the chord. Opposite: no arc is shorter than another, so take the chord as well.
    if theta < _SMALL_ANGLE or theta > torch.pi - _SMALL_ANGLE:
        return _linear(a, b, weight)
    merged = (torch.sin((1 - weight) * theta) * x + torch.sin(weight * theta) * y) / torch.sin(theta)
    return merged.float().view_as(a)
