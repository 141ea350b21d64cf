"""One checkpoint with several speeds: all-FA and the chosen placements, sharing every other weight.

Everything outside the mixers is stored once, and so is a mixer that several placements run in the same layer.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass

import pyarrow as pa
from torch import nn

from apriel_assets.errors import UserError
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.hybrid.placement import FULL_ATTENTION, SAFE, Placement, check_placement
from apriel_assets.tables.schemas import to_table


@dataclass(frozen=True, kw_only=True, slots=True)
class Sharing:
    """What the named placements of a checkpoint have in common, tied parameters counted once."""

    shared_parameters: int  # that every named placement runs
    total_parameters: int  # of the checkpoint
    parameters: dict[str, int]  # that each placement runs
    added_bytes: dict[str, int]  # that no other named placement needs

    @property
    def shared_share(self) -> float:
        """Shared over total parameters, 0 to 1."""
        return self.shared_parameters / self.total_parameters


def make_matryoshka(
    supernet: HybridForCausalLM, placements: Mapping[str, Placement], *, copy: bool = True
) -> HybridForCausalLM:
    """Return the supernet with only the mixers of all-FA ("safe") and of these placements.

    A kept placement's logits are the supernet's, bit for bit. "safe" is active; names that the supernet had
    are gone.

    Args:
        supernet: full attention in every layer.
        placements: by name.
        copy: False: prune the supernet itself.

    Raises:
        UserError: a placement that does not fit or whose mixer a layer does not hold, by its name; a "safe"
            that is not all-FA; nothing is changed then.
    """
    kept = {SAFE: (FULL_ATTENTION,) * supernet.num_layers, **placements}
    if any(mixer != FULL_ATTENTION for mixer in kept[SAFE]):
        raise UserError(f"placement {SAFE!r} is all full attention; give the other placement another name")
    for name, placement in kept.items():
        try:
            kept[name] = check_placement(placement, supernet.num_layers, supernet.mixers)
        except UserError as error:
            raise UserError(f"placement {name!r}: {error}") from error
    model = deepcopy(supernet) if copy else supernet
    model.config.placements = {}
    for name, placement in kept.items():
        model.name_placement(name, placement)
    model.set_placement(SAFE)
    model.prune()
    return model


def sharing(model: HybridForCausalLM) -> Sharing:
    """Count what the named placements share.

    Raises:
        UserError: a model without named placements.
    """
    if not model.placements:
        raise UserError("the model has no named placements; prune it to some with make_matryoshka first")
    sizes = {id(p): (p.numel(), p.numel() * p.element_size()) for p in model.parameters()}
    runs = {name: _parameters_of(model, placement) for name, placement in model.placements.items()}
    added = {}
    for name, ids in runs.items():
        others = set().union(*(other for key, other in runs.items() if key != name))
        added[name] = sum(sizes[i][1] for i in ids - others)
    return Sharing(
        shared_parameters=sum(sizes[i][0] for i in set.intersection(*runs.values())),
        total_parameters=sum(count for count, _ in sizes.values()),
        parameters={name: sum(sizes[i][0] for i in ids) for name, ids in runs.items()},
        added_bytes=added,
    )


def sharing_table(model: HybridForCausalLM) -> pa.Table:
    """Return the `sharing` table, a row per named placement; errors as `sharing`."""
    found = sharing(model)
    rows = [
        {
            "placement": name,
            "parameters": found.parameters[name],
            "added_bytes": found.added_bytes[name],
            "shared_share": found.shared_share,
            "total_parameters": found.total_parameters,
        }
        for name in model.placements
    ]
    return to_table("sharing", rows)


def _parameters_of(model: HybridForCausalLM, placement: Placement) -> set[int]:
    """Return the ids of the parameters that a placement runs."""

    def ids(module: nn.Module) -> set[int]:
        return {id(parameter) for parameter in module.parameters()}

    in_banks = set().union(*(ids(bank) for bank in model.banks))
    active = set().union(*(ids(bank.mixers[m]) for bank, m in zip(model.banks, placement, strict=True)))
    return (ids(model) - in_banks) | active
