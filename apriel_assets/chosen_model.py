"""From the name that a user gives to a model, its placement and its tokenizer: `apriel generate` starts here.

A name is a directory with a checkpoint, a release, or a model of the home's `checkpoints` table.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apriel_assets.errors import UserError
from apriel_assets.hybrid.placement import FULL_ATTENTION, MIXERS, Placement, check_placement
from apriel_assets.paths import expanded
from apriel_assets.tables.held_back import not_held_back
from resources.artifact_store import LEFT_OUT
from resources.lake import Lake

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from apriel_assets.hybrid.model import HybridForCausalLM

Row = Mapping[str, Any]

ALL_FA = "all-fa"
"""Stands for full attention in every layer, whatever a checkpoint calls it."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """Where a model is."""

    name: str
    directory: Path | None  # None: where the home's teacher asset says
    home: Path
    placement: Placement | None = None  # None: the one that the checkpoint makes active
    recipe: str | None = None  # these three as in the home's `checkpoints` table; None: it is not from there
    kind: str | None = None
    path: str | None = None

    def load(self) -> "tuple[HybridForCausalLM, PreTrainedTokenizerBase]":
        """Return the model under its placement, and its tokenizer; without one of its own, the home's teacher's.

        Raises:
            UserError: it cannot be read, the home was packed without its weights, or there is no tokenizer.
        """
        from transformers.utils import logging

        from apriel_assets.hybrid.any_checkpoint import load_any
        from apriel_assets.hybrid.model import HybridForCausalLM
        from apriel_assets.hybrid.teacher import load_teacher

        logging.disable_progress_bar()  # transformers'; a person waits for text
        if self.directory is None:
            teacher, tokenizer = load_teacher(_teacher_spec(self.home))
            return HybridForCausalLM.from_teacher(teacher, copy=False).eval(), tokenizer
        _refuse_left_out(self.name, self.directory, self.home)
        model = load_any(self.directory)
        if self.placement is not None:
            model.set_placement(self.placement)
        return model, _tokenizer(self.directory, self.home)


def find_model(name: str | None, home: Path) -> Found:
    """Return where a model is.

    Args:
        name: a directory, or a model of the home's tables; None: what the home releases and no guard holds back, or its
            matryoshka.
        home: searched for the name.

    Raises:
        UserError: neither, or several recipes have it.
    """
    if name is not None and (directory := _directory(name)) is not None:
        return Found(name=name, directory=directory, home=home)
    if not (home / "lake" / "checkpoints").is_dir():
        given = "no --model given" if name is None else f"no directory {name}"
        raise UserError(
            f"{given}, and no results in {home}; give a checkpoint's directory, or another --home"
        )
    rows = (
        Lake(home)
        # What was trained the furthest first: a release may have been trained on.
        .arrow(
            "SELECT model, recipe, kind, path, placement, variant FROM checkpoints "
            "ORDER BY total_tokens DESC NULLS LAST, model, recipe"
        )
        .to_pylist()
    )
    if name is None:
        guarded = Lake(home).arrow("SELECT * FROM before_after").to_pylist()
        row = _released_row(not_held_back(rows, guarded), home)
    else:
        row = _named_row(rows, name, home)
    directory = None if row["path"] is None else home / row["path"]
    if directory is not None and not directory.resolve().is_relative_to(home.resolve()):
        raise UserError(
            f"{row['model']} is said to be at {row['path']}, which is not in {home}; build it again"
        )
    return Found(
        name=row["model"],
        directory=directory,
        placement=tuple(row["placement"]),
        home=home,
        recipe=row["recipe"],
        kind=row["kind"],
        path=row["path"],
    )


def _refuse_left_out(name: str, directory: Path, home: Path) -> None:
    """Refuse a model of a packed home whose weights did not come along; its reader would say that a file is missing."""
    artifact = next((own for own in directory.parents if (own / LEFT_OUT).is_file()), None)
    if artifact is None or not artifact.is_relative_to(home / "artifacts"):
        return
    if not all((artifact / file).exists() for file in json.loads((artifact / LEFT_OUT).read_text())):
        raise UserError(
            f"{name}: its weights were left behind when the home was packed; take them from where it was packed, "
            f"or remove {artifact} and run again: it is then built anew"
        )


def _directory(name: str) -> Path | None:
    path = expanded(name)
    if (path / "matryoshka" / "config.json").is_file():
        return path / "matryoshka"
    if (path / "config.json").is_file():
        return path
    if path.is_dir():
        raise UserError(f"{name} is a directory without config.json; give a checkpoint or an `apriel export`")
    return None


def _released_row(rows: Sequence[Row], home: Path) -> Row:
    for kind in ("release", "matryoshka"):
        if not (own := [row for row in rows if row["kind"] == kind and row["variant"] is None]):
            continue
        if len(recipes := sorted({row["recipe"] for row in own})) > 1:
            raise UserError(
                f"recipes {', '.join(recipes)} release models; say which: --model {recipes[0]}:safe"
            )
        return next((row for row in own if set(row["placement"]) == {FULL_ATTENTION}), own[0])
    raise UserError(
        f"{home} releases nothing yet; name a model: --model {rows[0]['model'] if rows else 'DIRECTORY'}"
    )


def _named_row(rows: Sequence[Row], name: str, home: Path) -> Row:
    recipe, _, model = name.rpartition(":")
    own = [row for row in rows if row["model"] == model and recipe in ("", row["recipe"])]
    if len(own) == 1:
        return own[0]
    if own:
        choices = ", ".join(f"{row['recipe']}:{model}" for row in own)
        raise UserError(f"{len(own)} recipes have {model}; say which: {choices}")
    known = sorted({row["model"] for row in rows})
    near = difflib.get_close_matches(model, known, n=3, cutoff=0.3) or known
    raise UserError(f"no directory and no model {name!r}; {home} has, nearest first: {', '.join(near)}")


def pick_placement(model: "HybridForCausalLM", wanted: str) -> Placement:
    """Return a placement by its name, as `all-fa`, or mixer by mixer (`fa,gdn,...`).

    Raises:
        UserError: an unknown name, or a mixer that a layer does not hold.
    """
    if wanted in model.placements:
        return model.placements[wanted]
    if wanted == ALL_FA:
        placement = (FULL_ATTENTION,) * model.num_layers
    elif "," in wanted or wanted in MIXERS:
        placement = tuple(own.strip() for own in wanted.split(","))
    else:
        raise UserError(
            f"no placement {wanted!r}; there are {', '.join([*model.placements, ALL_FA])}, or a mixer for each layer, "
            "separated by commas"
        )
    return check_placement(placement, model.num_layers, model.mixers)


def _teacher_spec(home: Path) -> Any:
    from apriel_assets.hybrid.specs import TeacherSpec
    from resources.artifact_store import ArtifactStore

    if not (stored := ArtifactStore(home).provenances("teacher")):
        raise UserError(f"no teacher in {home}; run `apriel run --home {home}` first")
    directory = ArtifactStore(home).directory("teacher", stored[-1]["address"])
    return TeacherSpec(**json.loads((directory / "teacher.json").read_text())["load_from"])


def _tokenizer(directory: Path, home: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    if (directory / "tokenizer_config.json").is_file():
        from apriel_assets.hybrid.foreign_files import in_one_line

        return in_one_line(
            f"the tokenizer of {directory}",
            lambda: AutoTokenizer.from_pretrained(directory, trust_remote_code=False),
        )
    if (home / "artifacts" / "teacher").is_dir():
        from apriel_assets.hybrid.teacher import load_tokenizer

        return load_tokenizer(_teacher_spec(home))
    raise UserError(
        f"{directory} has no tokenizer, and {home} no teacher to take one from; put its files there"
    )
