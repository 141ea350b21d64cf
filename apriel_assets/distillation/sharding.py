"""One student, several processes: each holds all of it, or a part of every weight, gradient and optimiser state.

The latter is PyTorch's FSDP2: a layer's weights are gathered while it runs, its gradients summed and spread again.
Optimisers step on plain tensors, each process's own part of every weight, so that they need not know.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY
from torch.distributed._composable_state import _module_state_mapping
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from apriel_assets.distillation.causal_lm import decoder_layers
from apriel_assets.errors import UserError

_OWN_PART = "_own_part"
_ENTRY = "final_hidden_states"  # the method of a hybrid that training calls


@contextmanager
def shared(student: nn.Module, num_processes: int, *, sharding: bool) -> Iterator[None]:
    """Let all processes of the default group train one student, and give it back whole.

    With sharding its parameters are DTensors between passes; `settle` puts them back into that state after one. After
    an error it stays spread: the other processes may not be here to gather it.

    Raises:
        UserError: sharding of a student that is no hybrid.
    """
    if num_processes == 1:
        yield
        return
    if sharding:
        if not hasattr(student, _ENTRY):
            raise UserError(
                f"sharding trains hybrids, not a plain {type(student).__name__}; make it a hybrid first"
            )
        _shard(student, num_processes)
    for parameter in student.parameters():
        own = parameter.to_local() if isinstance(parameter, DTensor) else parameter.data
        # An optimiser may swap the data of what it steps on for a while; of a parameter itself that would undo the
        # hooks by which its gradients are summed.
        setattr(parameter, _OWN_PART, nn.Parameter(own, parameter.requires_grad))
    yield
    if sharding:
        settle(student)
        _make_whole(student)
    for parameter in student.parameters():
        vars(parameter).pop(_OWN_PART, None)


@contextmanager
def sharded_teacher(teacher: nn.Module, num_processes: int) -> Iterator[None]:
    """Spread a frozen model over all processes, and give it back whole; an LM head of its own stays whole."""
    _shard(teacher, num_processes)
    yield
    settle(teacher)
    _make_whole(teacher)


def settle(model: nn.Module) -> None:
    """Let go of weights that a pass without a backward pass has left gathered."""
    root = _root(model)
    if isinstance(root, FSDPModule):
        root.reshard()


def own_part(parameter: Tensor) -> Tensor:
    """Return what an optimiser steps on: this process's part of a parameter, or the parameter where it is whole."""
    return getattr(parameter, _OWN_PART, parameter)


@contextmanager
def gradients_of_parts(student: nn.Module) -> Iterator[None]:
    """Hand gradients over to the parts while optimisers step."""
    parts = [(p, own_part(p)) for p in student.parameters() if own_part(p) is not p]
    for parameter, part in parts:
        gradient: Any = parameter.grad
        part.grad = gradient.to_local() if isinstance(gradient, DTensor) else gradient
    try:
        yield
    finally:
        for parameter, part in parts:
            parameter.grad = part.grad = None


def whole(value: Tensor, parameter: Tensor) -> Tensor:
    """Gather a tensor that is spread as a parameter is, from this process's part of it."""
    if not isinstance(parameter, DTensor):
        return value
    spread = DTensor.from_local(
        value, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    )
    return spread.full_tensor()


def part_of(value: Tensor, parameter: Tensor) -> Tensor:
    """Return this process's part of a whole tensor that every process has."""
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(
        value, parameter.device_mesh, parameter.placements, src_data_rank=None
    ).to_local()


def _root(model: Any) -> nn.Module:
    """Return the module that training calls: a hybrid by its own method, any other model's backbone as a module."""
    return model if hasattr(model, _ENTRY) else model.base_model


def _shard(model: nn.Module, num_processes: int) -> None:
    mesh = init_device_mesh(next(model.parameters()).device.type, (num_processes,))
    root = _root(model)
    for layer in decoder_layers(cast(Any, model)):
        fully_shard(layer, mesh=mesh)
    fully_shard(root, mesh=mesh)
    if root is model:
        register_fsdp_forward_method(root, _ENTRY)


def _make_whole(model: nn.Module) -> None:
    """Take FSDP off again; PyTorch has no function for it."""
    found: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if isinstance(parameter, DTensor):
                if id(parameter) not in found:
                    found[id(parameter)] = nn.Parameter(parameter.full_tensor(), parameter.requires_grad)
                module._parameters[name] = found[id(parameter)]
    for module in list(model.modules()):
        if isinstance(module, FSDPModule):
            state: Any = module._get_fsdp_state()
            state._pre_forward_hook_handle.remove()
            state._post_forward_hook_handle.remove()
            for key in (STATE_KEY, REGISTRY_KEY):
                vars(module).pop(key, None)
            _module_state_mapping.pop(module, None)
            module.__class__ = type(module).__bases__[1]
    vars(model).pop(_ENTRY, None)
