"""Checks of a recipe against its teacher, made before anything runs where the teacher's config lies on this machine."""

import json
from collections.abc import Iterable
from pathlib import Path

from apriel_assets.errors import UserError
from apriel_assets.hybrid.specs import TeacherSpec
from apriel_assets.paths import expanded
from apriel_assets.recipe import Recipe

_PATH_STARTS, _PATH_ENDS = ("./", "../", "/", "~"), (".gguf", ".safetensors")
_BUNDLED = Path(__file__).parent / "bundled" / "teacher"


def check_layers_named(recipe: Recipe) -> None:
    """Check the teacher's path, and every layer number and count in the recipe.

    A hub id or a GGUF file says how many layers it has when the `teacher` asset is built, unless the recipe's
    `capacity.shape` does; what is wrong is refused by the steps themselves then.

    Raises:
        UserError: a teacher's path with nothing to load; more layers than the teacher has, or one that it does not
            have; a `capacity.shape` of another model.
    """
    _check_path(recipe.teacher)
    num_layers = known_num_layers(recipe.teacher)
    if recipe.capacity is not None:
        written = recipe.capacity.shape.num_layers
        if num_layers not in (None, written):
            raise UserError(f"capacity.shape.num_layers={written}, but the teacher has {num_layers} layers")
        num_layers = written
    if num_layers is None:
        return

    def check(key: str, layers: Iterable[int]) -> None:
        if outside := [layer for layer in layers if not 0 <= layer < num_layers]:
            raise UserError(f"{key} names layers {outside}; the teacher has layers 0 to {num_layers - 1}")

    if recipe.h1 is not None:
        check("h1.keep_attention", recipe.h1.keep_attention)
        check("h1.order", recipe.h1.order if isinstance(recipe.h1.order, tuple) else ())
        free = num_layers - len(set(recipe.h1.keep_attention))
        if recipe.h1.schedule[-1] > free:
            raise UserError(
                f"h1.schedule asks for {recipe.h1.schedule[-1]} replaced layers; the teacher has {num_layers}, and "
                f"h1.keep_attention keeps {num_layers - free}"
            )
    if recipe.supernet is not None:
        check("supernet.layers", recipe.supernet.layers)
    if recipe.search is not None:
        check("search.allocations.pinned", recipe.search.allocations.pinned)


def _check_path(spec: TeacherSpec) -> None:
    path = expanded(spec.model)
    written_as_path = spec.model.startswith(_PATH_STARTS) or spec.model.endswith(_PATH_ENDS)
    if spec.model == "bundled" or not (written_as_path or path.is_dir()):
        return  # a hub id: whether there is such a model is asked when it is downloaded
    if not path.exists():
        raise UserError(f"teacher.model {spec.model}: {path.absolute()} does not exist; correct the path")
    if path.is_file() and path.suffix != ".gguf":
        raise UserError(
            f"teacher.model {spec.model} is a file, but no .gguf; give a directory or a .gguf file"
        )
    needed = spec.gguf_file or "config.json"
    if path.is_dir() and not (path / needed).is_file():
        raise UserError(f"teacher.model {spec.model}: no {needed} in {path.absolute()}")


def known_num_layers(spec: TeacherSpec) -> int | None:
    """Return the number of decoder layers by the config.json of a local teacher; None: there is none to read."""
    directory = _BUNDLED if spec.model == "bundled" else expanded(spec.model)
    if spec.gguf_file or not (directory / "config.json").is_file():
        return None
    try:
        content = json.loads((directory / "config.json").read_text())
        found = content.get("num_hidden_layers") or content.get("text_config", {}).get("num_hidden_layers")
    except (OSError, ValueError, AttributeError):
        return None  # reading the teacher says what is wrong with it
    return found if isinstance(found, int) else None
