"""Weights in files that several directories share: a tensor lies in the file of exactly those placements that run it.

A placement's directory then needs whole files only, and hard links store each of them once.
"""

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from apriel_assets.hybrid.bank import MixerBank
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.hybrid.placement import Placement

INDEX = "model.safetensors.index.json"
SHARED = "shared"
_MOST_BYTES = 5 * 10**9  # of a file; a larger group takes several
_LONGEST_NAME = 60  # characters; with many placements the group gets a number


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One weight file."""

    file: str
    tensors: tuple[str, ...]
    placements: frozenset[str]  # that run them
    num_bytes: int  # of its tensors


def tensors_of(model: HybridForCausalLM) -> dict[str, Tensor]:
    """Return what a checkpoint of the model holds, by name: tied tensors once."""
    return remove_tied_weights_from_state_dict(dict(model.state_dict()), model)


def users(
    model: HybridForCausalLM, names: Iterable[str], placements: Mapping[str, Placement]
) -> dict[str, frozenset[str]]:
    """Return which placements run each tensor; what is no mixer's is run by all."""
    everyone = frozenset(placements)
    mixers = {}
    for path, module in model.named_modules():
        if isinstance(module, MixerBank):
            for mixer in module.names:
                running = (name for name, placement in placements.items() if placement[module.layer] == mixer)
                mixers[f"{path}.mixers.{mixer}."] = frozenset(running)
    found = {}
    for name in names:
        own = (running for prefix, running in mixers.items() if name.startswith(prefix))
        found[name] = next(own, everyone)
    return found


def write_shards(
    model: HybridForCausalLM,
    directory: Path,
    placements: Mapping[str, Placement],
    *,
    most_bytes: int = _MOST_BYTES,
) -> list[Shard]:
    """Write a model's weights, grouped by the placements that run them; mixers that none runs are left out.

    Args:
        model: holds the placements.
        directory: gets the files and their index.
        placements: by name.
        most_bytes: of the tensors of one file, unless a single one is larger.
    """
    tensors = tensors_of(model)
    groups: dict[frozenset[str], list[str]] = defaultdict(list)
    for name, running in users(model, tensors, placements).items():
        groups[running].append(name)
    shards = []
    # The largest circle of users first.
    ordered = sorted((g for g in groups if g), key=lambda group: (-len(group), sorted(group)))
    for number, running in enumerate(ordered):
        stem = _stem(running, number, len(placements))
        parts = _cut(groups[running], tensors, most_bytes)
        for part, names in enumerate(parts, 1):
            file = f"{stem}.safetensors" if len(parts) == 1 else f"{stem}-{part:05d}.safetensors"
            held = {name: tensors[name].detach().cpu().contiguous() for name in names}
            save_file(held, directory / file, metadata={"format": "pt"})
            size = sum(tensor.nbytes for tensor in held.values())
            shards.append(Shard(file=file, tensors=tuple(names), placements=running, num_bytes=size))
    write_index(shards, directory)
    return shards


def _stem(running: frozenset[str], number: int, num_placements: int) -> str:
    if len(running) == num_placements:
        return SHARED
    joined = "+".join(sorted(running))
    return joined if len(joined) <= _LONGEST_NAME else f"group-{number}"


def _cut(names: Sequence[str], tensors: Mapping[str, Tensor], most_bytes: int) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    size = 0
    for name in names:
        if parts[-1] and size + tensors[name].nbytes > most_bytes:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += tensors[name].nbytes
    return parts


def write_index(shards: Sequence[Shard], directory: Path) -> None:
    """Write the index that transformers and others look tensors up in."""
    weight_map = {tensor: shard.file for shard in shards for tensor in shard.tensors}
    content = {
        "metadata": {"total_size": sum(shard.num_bytes for shard in shards)},
        "weight_map": dict(sorted(weight_map.items())),
    }
    (directory / INDEX).write_text(json.dumps(content, indent=1) + "\n")


def link_shards(shards: Sequence[Shard], source: Path, directory: Path) -> None:
    """Give a directory the same files, with an index of its own; copies where the file system has no hard links."""
    for shard in shards:
        link_or_copy(source / shard.file, directory / shard.file)
    write_index(shards, directory)


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` another name of `source`, or, across file systems, its copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def copy_tree(source: Path, target: Path) -> None:
    """Copy a directory into an empty one, keeping what was stored once stored once."""
    seen: dict[tuple[int, int], Path] = {}
    for path in sorted(source.rglob("*")):
        own = target / path.relative_to(source)
        if path.is_dir():
            own.mkdir(parents=True, exist_ok=True)
            continue
        own.parent.mkdir(parents=True, exist_ok=True)
        facts = path.stat()
        key = (facts.st_dev, facts.st_ino)
        if key in seen:
            link_or_copy(seen[key], own)
        else:
            shutil.copyfile(path, own)
            seen[key] = own


def bytes_on_disk(directory: Path) -> int:
    """Return the bytes of all files below a directory, those with several names once."""
    found = {(facts.st_dev, facts.st_ino): facts.st_size for facts in map(os.stat, _files(directory))}
    return sum(found.values())


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]
