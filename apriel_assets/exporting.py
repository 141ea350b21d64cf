"""`apriel export`: a model of the home, or any checkpoint, written whole with what the tables know of it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apriel_assets.assets.release_builders import RELEASE_DIRECTORY
from apriel_assets.chosen_model import Found, find_model
from apriel_assets.errors import UserError
from apriel_assets.paths import expanded
from resources.artifact_store import ArtifactStore
from resources.atomic import created_directory
from resources.lake import Lake

if TYPE_CHECKING:
    from apriel_assets.hybrid.model import HybridForCausalLM
    from apriel_assets.serving.model_card import Released

EXPORT_ASSET = "release/export"
_CARD = "README.md"

Row = Mapping[str, Any]


def export_model(model: str | None, home: Path, directory: Path, name: str | None) -> dict[str, Any]:
    """Export a model; the directory appears when it is whole.

    Args:
        model: as `find_model` takes it.
        home: where it, and its figures, are looked up.
        directory: must not exist or be empty.
        name: of the release; None: the recipe's name, or the model's.

    Returns:
        directory, name, placements, bytes, and by placement how vLLM would lay out its caches.

    Raises:
        UserError: no such model, a directory with something in it, a name that cannot be a directory's.
    """
    from apriel_assets.serving.export import MATRYOSHKA, export_release, exported_placements
    from apriel_assets.serving.shards import bytes_on_disk

    target = expanded(directory).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{directory} is there already and not empty; choose another, or delete it")
    found = find_model(model, home)
    loaded, tokenizer = found.load()
    placements = exported_placements(loaded)
    name = name or found.recipe or Path(found.name).name
    released = _released(found, placements)
    try:
        with created_directory(target) as temporary:
            export_release(
                loaded,
                tokenizer,
                temporary,
                name=name,
                accuracy={
                    own: mean for own, known in released.items() if (mean := _accuracy(known)) is not None
                },
                throughput={own: known.throughput for own, known in released.items()},
            )
            card = _card(temporary, released, found, loaded)
            (temporary / MATRYOSHKA / _CARD).write_text(card)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}; choose another directory") from error
    size = bytes_on_disk(target)
    return {
        "directory": str(target),
        "name": name,
        "placements": list(placements),
        "bytes": size,
        "vllm_cache": _vllm_caches(loaded, placements),
    }


def _vllm_caches(loaded: "HybridForCausalLM", placements: Mapping[str, Sequence[str]]) -> dict[str, dict]:
    """Return, by placement, groups and layers of vLLM's caches and what of a full context's memory is unused."""
    from apriel_assets.evaluation.throughput import model_shape
    from apriel_assets.serving.cache_groups import cache_groups

    shape, context = model_shape(loaded), loaded.config.max_position_embeddings
    found = {}
    for own, placement in placements.items():
        groups = cache_groups(shape, placement)
        found[own] = {
            "layers": groups.layers,
            "groups": groups.num_groups,
            "layers_per_group": groups.layers_per_group,
            "padding_layers": groups.padding_layers,
            "block_tokens": groups.block_tokens,
            "context_tokens": context,
            "request_bytes": groups.request_bytes(context),
            "wasted_share": groups.wasted_share(context),
        }
    return found


def exported_by_home(home: Path) -> Path:
    """Return the newest release that the home's assets exported.

    Raises:
        UserError: none.
    """
    stored = ArtifactStore(home).provenances(EXPORT_ASSET)
    if not stored:
        raise UserError(
            f"no exported release in {home}; run `apriel run`, or give one that `apriel export` wrote"
        )
    return ArtifactStore(home).directory(EXPORT_ASSET, stored[-1]["address"]) / RELEASE_DIRECTORY


def _released(found: Found, placements: Mapping[str, Sequence[str]]) -> dict[str, "Released"]:
    """Return what the tables say of each placement of this checkpoint."""
    from apriel_assets.serving.model_card import Released

    if found.recipe is None:
        return {own: Released(placement=tuple(placement)) for own, placement in placements.items()}
    lake = Lake(found.home)
    tables = {
        table: lake.read(table, found.recipe, variants=True).to_pylist()
        for table in ("checkpoints", "evals", "throughput")
    }
    known = {}
    for own, placement in placements.items():
        model = _measured_as(found, own, list(placement), tables["checkpoints"])
        known[own] = Released(
            placement=tuple(placement),
            evals=[_plain(row) for row in tables["evals"] if row["model"] == model],
            throughput=[_plain(row) for row in tables["throughput"] if row["model"] == model],
        )
    return known


def _measured_as(found: Found, name: str, placement: list[str], rows: Sequence[Row]) -> str | None:
    """Return under which model the tables have figures of these weights under a placement; None: under none."""
    same = [row for row in rows if row["placement"] == placement]
    own = {row["model"] for row in same if row["path"] == found.path}
    if found.kind == "matryoshka":  # pruned from the supernet and nothing else, so its figures are these
        kinds = ("placement", "teacher") if _starts_from_teacher(found, rows) else ("placement",)
        own |= {row["model"] for row in same if row["kind"] in kinds}
        own.discard(found.name)  # a row of the file, which nobody evaluated
    return name if name in own else min(own, default=None)


def _starts_from_teacher(found: Found, rows: Sequence[Row]) -> bool:
    """Whether the supernet's full attention is still the teacher's: only its mixers were trained."""
    paths = [found.home / row["path"] for row in rows if row["kind"] == "supernet" and row["path"]]
    records = [path.parent / "provenance.json" for path in paths]
    figures = [json.loads(own.read_text()).get("figures", {}) for own in records if own.is_file()]
    return bool(figures) and all(own.get("all_fa_max_difference") == 0 for own in figures)


def _accuracy(known: "Released") -> float | None:
    values = [row["value"] for row in known.evals if row["metric"] == "accuracy"]
    return sum(values) / len(values) if values else None


def _plain(row: Row) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("recipe", "version")}


def _card(directory: Path, released: Mapping[str, "Released"], found: Found, loaded: Any) -> str:
    from apriel_assets.hybrid.matryoshka import sharing_table
    from apriel_assets.serving.export import RELEASE
    from apriel_assets.serving.model_card import render_card

    record = json.loads((directory / RELEASE).read_text())
    return render_card(
        record["name"],
        {own: released[own] for own in record["placements"]},
        default=record["default"],
        sharing=sharing_table(loaded).to_pylist() if loaded.placements else [],
        teacher=_teacher(found),
        provenance=_provenance(found),
    )


def _teacher(found: Found) -> dict[str, Any]:
    if found.recipe is None:
        return {}
    stored = ArtifactStore(found.home).provenances("teacher")
    own = [row for row in stored if row.get("recipe") == found.recipe] or stored
    figures = own[-1]["figures"] if own else {}
    kept = ("architecture", "num_layers", "num_parameters")
    spec = own[-1]["recipe_slice"].get("spec", {}) if own else {}
    return {"model": spec.get("model"), **{key: figures.get(key) for key in kept}}


def _provenance(found: Found) -> dict[str, Any]:
    from resources.provenance import code_revision

    shown: dict[str, Any] = {"recipe": found.recipe, "checkpoint": found.path, "exported by": code_revision()}
    record = None if found.directory is None else found.directory.parent / "provenance.json"
    if found.recipe is not None and record is not None and record.is_file():
        made = json.loads(record.read_text())
        shown |= {"address": made.get("address"), "trained by": made.get("code"), "on": made.get("device")}
        shown |= {"date": made.get("date")}
    return shown
