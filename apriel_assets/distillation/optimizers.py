"""Which parameters train, by which optimiser, at which learning rate."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from apriel_assets.distillation.causal_lm import lm_head
from apriel_assets.distillation.config import OptimizerConfig
from apriel_assets.distillation.master_weights import MasterWeights
from apriel_assets.distillation.sharding import own_part, part_of, whole
from apriel_assets.errors import UserError

_ADAM_BETAS = (0.9, 0.95)


class MasterAdamW(MasterWeights, torch.optim.AdamW):
    """AdamW with fp32 copies of weights of lower precision."""


class StackedMuon(torch.optim.Muon):
    """Muon that orthogonalises all matrices of one shape together; the same update as `torch.optim.Muon`.

    A small model has hundreds of small matrices, and five Newton-Schulz iterations on each are thousands of
    tiny products. Stacked, they are a few batched ones. On CPU they run in fp32: bf16 is emulated on most,
    and slow.

    A matrix that is spread over processes is gathered for its direction, and each takes its own part of the update.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
    """

    spread: Mapping[Tensor, Tensor] = MappingProxyType({})  # by part: the parameter that it is a part of

    @torch.no_grad()
    def step(self, closure=None):
        """Perform one step over all parameters that have gradients."""
        assert closure is None, "closures are not supported"
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[self._spread(parameter).shape, parameter.dtype].append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict) -> None:
        directions = []
        for parameter in parameters:
            gradient = cast(Tensor, parameter.grad)
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
            momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
            direction = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
            directions.append(whole(direction, self._spread(parameter)))
        updates = orthogonalize(
            torch.stack(directions), group["ns_coefficients"], group["ns_steps"], group["eps"]
        ).to(parameters[0].dtype)
        rows, columns = self._spread(parameters[0]).shape
        rate = group["lr"] * math.sqrt(max(1, rows / columns))
        for parameter, update in zip(parameters, updates, strict=True):
            own = part_of(update, self._spread(parameter))
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(own, alpha=-rate)

    def _spread(self, parameter: Tensor) -> Tensor:
        return self.spread.get(parameter, parameter)


class MasterMuon(MasterWeights, StackedMuon):
    """Stacked Muon with fp32 copies of weights of lower precision."""


def orthogonalize(
    matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """Return matrices with the same singular vectors and singular values near 1, by Newton-Schulz iteration.

    Args:
        matrices: `[count, rows, columns]`.
        coefficients: of the quintic a X + b X X^T X + c (X X^T)^2 X.
        steps: iterations.
        eps: least Frobenius norm that is divided by.
    """
    a, b, c = coefficients
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.float() if matrices.device.type == "cpu" else matrices.bfloat16()
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def choose_trained(student: nn.Module, trains: str) -> list[str]:
    """Freeze what does not train and return the names of what does.

    "mixers" are the parameters of every mixer that is not full attention: full attention stays the teacher's.

    Raises:
        UserError: nothing is left to train.
    """
    names = []
    for name, parameter in student.named_parameters():
        _, inside, mixer = name.partition(".mixers.")
        parameter.requires_grad_(trains == "all" or (bool(inside) and not mixer.startswith("fa.")))
        if parameter.requires_grad:
            names.append(name)
    if not names:
        raise UserError(
            "trains=mixers, but every layer has full attention; convert a layer first or train all"
        )
    return names


def make_optimizers(student: PreTrainedModel, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """Return the optimisers of all parameters that require gradients.

    Muon takes the weights of linear layers, which are the matrices whose singular values mean something.
    AdamW takes the rest: embeddings and heads (rows are tokens), norms, biases, convolutions, decay rates.
    Only weights of linear layers decay. Weights in bf16 or fp16 move as fp32 copies of theirs.
    """
    matrices = {id(weight) for weight in _layer_matrices(student)}
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    inner = [own_part(parameter) for parameter in trained if id(parameter) in matrices]
    outer = [own_part(parameter) for parameter in trained if id(parameter) not in matrices]
    adam_groups = [{"params": outer, "weight_decay": 0.0}] if outer else []
    optimizers: list[torch.optim.Optimizer] = []
    if inner and config.optimizer == "muon":
        muon = MasterMuon(
            inner, lr=config.muon_learning_rate, weight_decay=config.weight_decay, momentum=0.95
        )
        muon.spread = {own_part(parameter): parameter for parameter in trained}
        optimizers.append(muon)
    elif inner:
        adam_groups.append({"params": inner, "weight_decay": config.weight_decay})
    if adam_groups:
        optimizers.append(MasterAdamW(adam_groups, lr=config.learning_rate, betas=_ADAM_BETAS))
    return optimizers


def learning_rate_factor(step: int, config: OptimizerConfig) -> float:
    """Return what multiplies the learning rates at a step (from 0): warm-up, then decay towards 0."""
    warmup = round(config.warmup_fraction * config.steps)
    if step < warmup:
        return (step + 1) / warmup
    share_done = (step - warmup) / max(1, config.steps - warmup)
    if config.decay == "linear":
        return 1 - share_done
    return (1 + math.cos(math.pi * share_done)) / 2 if config.decay == "cosine" else 1.0


def learning_rates(optimizers: Iterable[torch.optim.Optimizer]) -> list[float]:
    """Return the learning rate of every parameter group."""
    return [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]


def set_learning_rates(
    optimizers: Iterable[torch.optim.Optimizer], peaks: Sequence[float], step: int, config: OptimizerConfig
) -> float:
    """Give every parameter group its learning rate at a step (from 0); return AdamW's."""
    factor = learning_rate_factor(step, config)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for group, peak in zip(groups, peaks, strict=True):
        group["lr"] = peak * factor
    return config.learning_rate * factor


def _layer_matrices(student: PreTrainedModel) -> list[Tensor]:
    embeddings: Any = student.get_input_embeddings()
    vocabulary_sized = {id(embeddings.weight), id(lm_head(student).weight)}
    return [
        module.weight
        for module in student.modules()
        if isinstance(module, nn.Linear) and id(module.weight) not in vocabulary_sized
    ]
