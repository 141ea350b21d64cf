"""What leaves the house: a matryoshka as a Hugging Face directory, its placements as engines, its all-FA as stock.

    release.json   name, placements, where each is, hashes of the stock model's weights
    matryoshka/    every placement; loads with our package, and by `trust_remote_code` without it
    engines/NAME/  one placement with only its weights: hard links to the matryoshka's files
    all-fa/        the teacher's own architecture; loads in any program that knows that

Writing is not atomic here: callers write into a directory that appears when it is whole.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from apriel_assets.errors import UserError
from apriel_assets.hybrid.bank import MixerBank, bare_attention
from apriel_assets.hybrid.checkpoint import WEIGHTS_SHA256, weight_hashes
from apriel_assets.hybrid.config import (
    KimiDeltaConfig,
    MambaConfig,
    MixerConfig,
    config_to_dict,
)
from apriel_assets.hybrid.hybrid_config import HybridConfig
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.hybrid.placement import FULL_ATTENTION, Placement
from apriel_assets.serving.remote_code import AUTO_MAP, write_remote_code
from apriel_assets.serving.shards import Shard, link_shards, write_shards

MATRYOSHKA, ENGINES, ALL_FA, RELEASE = "matryoshka", "engines", "all-fa", "release.json"


def export_release(
    model: HybridForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    *,
    name: str,
    accuracy: Mapping[str, float] | None = None,
    throughput: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> None:
    """Write all three kinds of export, and `release.json` which names them.

    Args:
        model: a hybrid; its named placements are exported, or else the active one.
        tokenizer: copied into each, with its chat template.
        directory: exists and is empty.
        name: what the release is called, in `release.json` and by whoever serves it.
        accuracy: of placements; `release.json` has the best first. Of those not measured, the one with the most full
            attention is taken for the best.
        throughput: rows of that table by placement, by which a router knows how fast each is.

    Raises:
        UserError: a name that cannot be a directory's.
    """
    _check_name("release", name)
    placements = exported_placements(model)
    (directory / MATRYOSHKA).mkdir()
    shards = export_matryoshka(model, tokenizer, directory / MATRYOSHKA, placements)
    for own in placements:
        (directory / ENGINES / own).mkdir(parents=True)
        export_engine(
            model, tokenizer, directory / ENGINES / own, own, placements[own], shards, directory / MATRYOSHKA
        )
    if all(FULL_ATTENTION in bank.names for bank in model.banks):
        (directory / ALL_FA).mkdir()
        export_all_fa(model, tokenizer, directory / ALL_FA)
    ordered = best_first(placements, accuracy or {})
    record = {
        "name": name,
        "default": ordered[0],
        "placements": {own: list(placements[own]) for own in ordered},
        "all_fa_weights_sha256": weight_hashes(directory / ALL_FA),
        "throughput": {own: list(rows) for own, rows in (throughput or {}).items()},
    }
    (directory / RELEASE).write_text(json.dumps(record, indent=1) + "\n")
    for path in directory.rglob("*.safetensors"):  # which the library writes for its user alone
        shutil.copymode(directory / RELEASE, path)


def best_first(placements: Mapping[str, Placement], accuracy: Mapping[str, float]) -> list[str]:
    """Return the placements' names, full attention first, then by accuracy, then by layers of full attention."""

    def rank(name: str) -> tuple[bool, float, int]:
        count = placements[name].count(FULL_ATTENTION)
        return count < len(placements[name]), -accuracy.get(name, 0.0), -count

    return sorted(placements, key=rank)


def exported_placements(model: HybridForCausalLM) -> dict[str, Placement]:
    """Return the named placements, or the active one as `hybrid` (`safe` if it is all full attention).

    Raises:
        UserError: a name that cannot be a directory.
    """
    placements = model.placements
    if not placements:
        name = "safe" if set(model.placement) == {FULL_ATTENTION} else "hybrid"
        placements = {name: model.placement}
    for name in placements:
        _check_name("placement", name)
    return placements


def _check_name(what: str, name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name):
        raise UserError(f"{what} {name!r} cannot be a directory's name: letters, digits, - _ . only")


def export_matryoshka(
    model: HybridForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    placements: Mapping[str, Placement],
) -> list[Shard]:
    """Write every placement of a model into one directory; return its weight files."""
    shards = write_shards(model, directory, placements)
    used = [{placement[layer] for placement in placements.values()} for layer in range(model.num_layers)]
    default = next(iter(placements.values()))
    _write_config(model, tokenizer, directory, used, default, placements)
    return shards


def export_engine(
    model: HybridForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    name: str,
    placement: Placement,
    shards: list[Shard],
    source: Path,
) -> None:
    """Write one placement as a plain hybrid with one mixer a layer; its weights are `source`'s files."""
    link_shards([shard for shard in shards if name in shard.placements], source, directory)
    _write_config(model, tokenizer, directory, [{mixer} for mixer in placement], placement, {})


def export_all_fa(model: HybridForCausalLM, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write full attention as a checkpoint of the teacher's own architecture, without any code of ours.

    Raises:
        UserError: a layer without full attention.
    """
    backbone = model.backbone
    before = backbone.generation_config
    backbone.generation_config = model.generation_config or before
    try:
        with bare_attention(model.decoder_layers):
            backbone.save_pretrained(directory)
    finally:
        backbone.generation_config = before
    tokenizer.save_pretrained(directory)


def _write_config(
    model: HybridForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    held: list[set[str]],
    placement: Placement,
    placements: Mapping[str, Placement],
) -> None:
    """Write everything but weights: they must be there already, since the config names their hashes."""
    mixers = [
        {name: config_to_dict(_sized(bank, name)) for name in bank.names if name in held[layer]}
        for layer, bank in enumerate(model.banks)
    ]
    config = HybridConfig(
        backbone=deepcopy(model.backbone.config),
        mixers=mixers,
        placement=list(placement),
        placements={name: list(value) for name, value in placements.items()},
        architectures=[type(model).__name__],
        dtype=str(model.dtype).removeprefix("torch."),
        auto_map=dict(AUTO_MAP),
    )
    setattr(config, WEIGHTS_SHA256, weight_hashes(directory))
    config.save_pretrained(directory)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    write_remote_code(directory)


def _sized(bank: MixerBank, name: str) -> MixerConfig:
    """Return a mixer's options with every size as a number: other programs need not know our defaults."""
    options, mixer = bank.options[name], bank.mixers[name]
    sizes: dict[str, Any] = {}
    if isinstance(options, MambaConfig):
        sizes = {"state_size": mixer.state_size, "dt_rank": mixer.dt_in_proj.out_features}  # pyright: ignore[reportAttributeAccessIssue]
    elif isinstance(options, KimiDeltaConfig):
        sizes = {"gate_rank": mixer.gate_in_proj.out_features}  # pyright: ignore[reportAttributeAccessIssue]
    return replace(options, **sizes)
