"""Which recipe the code location stands on: its file as it is, or the last one that loaded if the file does not.

What was loaded stays loaded, in every process: a run that the UI starts gets the recipe that the UI shows, whatever
became of the file meanwhile.
"""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import yaml
from dagster._core.definitions.definitions_load_context import DefinitionsLoadContext, DefinitionsLoadType

from apriel_assets.assets.asset_plan import AssetPlan
from apriel_assets.assets.task_keys import file_digests
from apriel_assets.errors import UserError
from apriel_assets.recipe import Recipe, load_recipe, recipe_path
from resources.artifact_store import digest
from resources.atomic import replaced_file

logger = logging.getLogger(__name__)

Resolve = Callable[[Recipe], Mapping[str, AssetPlan]]
"""Makes a recipe's assets; raises UserError if that cannot be done."""

_PINNED = "apriel/recipe"


@dataclass(frozen=True, kw_only=True)
class LoadedRecipe:
    """A recipe that loads, and where it is from."""

    recipe: Recipe
    assets: Mapping[str, AssetPlan]
    source: str  # file, or name of a shipped recipe
    problem: str | None = None  # why this is not the source as it is, but the last one that loaded; one line
    files: str | None = None  # hash of the source and of the task files that it names, when it was loaded

    @property
    def content(self) -> str:
        """The recipe as YAML."""
        return yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False)

    def pinned(self) -> dict[str, str]:
        """Return what Dagster hands to the processes that load the definitions again: runs."""
        return {_PINNED: self.recipe.model_dump_json()}

    def problem_now(self, resolve: Resolve, build: "Build") -> str | None:
        """Return why the source does not load, or that it is another recipe by now; None: it is what is loaded.

        Args:
            resolve: makes its assets.
            build: makes the code location, to see whether that fails.
        """
        # Asked at every look of a sensor: making all assets of a long recipe takes a while.
        if self.files is not None and _files(_text(self.source), self.recipe) == self.files:
            return None
        try:
            now = _load(self.source, resolve)
            if now.recipe == self.recipe and _versions(now.assets) == _versions(self.assets):
                return None
            build(now)
        except Exception as error:
            return _does_not_load(error)
        return f"{self.source} has changed since it was loaded: reload the code location (Deployment, Reload)"


Built = TypeVar("Built")
Build = Callable[[LoadedRecipe], Built]
"""Makes the code location of a recipe; raises whatever is wrong with it."""


def load_for_code_location(home: Path, resolve: Resolve, build: Build[Built]) -> Built:
    """Return what is built of the recipe to show: `APRIEL_RECIPE`, else the home's last run, else `quickstart`.

    In a run, the one that it was started from. One that fails on the way gives way to the last one that did not.

    Raises:
        Exception: what is wrong with it, if none was ever built before.
    """
    source = _source(home)
    if (pinned := _pinned_recipe()) is not None:
        return build(LoadedRecipe(recipe=pinned, assets=resolve(pinned), source=source))
    last_good = home / "dagster" / "loaded_recipe.yaml"
    try:
        loaded = _load(source, resolve)
        built = build(loaded)
    except Exception as error:  # of any kind: whatever a recipe does, the assets must stay in the UI
        return _last_good(last_good, resolve, build, source, error)
    with replaced_file(last_good) as temporary:
        temporary.write_text(loaded.content)
    return built


def _load(source: str, resolve: Resolve) -> LoadedRecipe:
    # Read before it is loaded: what is edited in between is noticed at the next look.
    text = _text(source)
    recipe = load_recipe(source)
    files = _files(text, recipe)
    return LoadedRecipe(recipe=recipe, assets=resolve(recipe), source=source, files=files)


def _last_good(path: Path, resolve: Resolve, build: Build[Built], source: str, error: Exception) -> Built:
    if not isinstance(error, UserError):
        logger.warning("%s does not load", source, exc_info=error)
    try:
        recipe = load_recipe(str(path))
        problem = _does_not_load(error)
        return build(LoadedRecipe(recipe=recipe, assets=resolve(recipe), source=source, problem=problem))
    except Exception:
        # None did load yet, or that one has lost a file too: the newer problem is the one to mend.
        raise error from None


def _does_not_load(error: Exception) -> str:
    line = " ".join(str(error).split())
    said = line if isinstance(error, UserError) else f"{type(error).__name__}: {line}"
    return f"{said}; what is shown and run here is the last recipe that loaded: correct it and reload"


def _source(home: Path) -> str:
    last = home / "recipe.yaml"
    return os.environ.get("APRIEL_RECIPE") or (str(last) if last.is_file() else "quickstart")


def _pinned_recipe() -> Recipe | None:
    context = DefinitionsLoadContext.get()
    if context.load_type != DefinitionsLoadType.RECONSTRUCTION:
        return None
    content = context.reconstruction_metadata.get(_PINNED)
    return Recipe.model_validate_json(content) if content else None


def _text(source: str) -> str | None:
    """Return a recipe's file as it is now, or None if it cannot be read."""
    try:
        return recipe_path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _files(text: str | None, recipe: Recipe) -> str | None:
    """Return a hash of a recipe's text and of the task files that it names, or None if one cannot be read."""
    tasks = (*recipe.tasks.train, *recipe.tasks.heldout, *recipe.evals.tasks)
    try:
        return None if text is None else digest([text, file_digests(tasks)])
    except UserError:
        return None


def _versions(assets: Mapping[str, AssetPlan]) -> dict[str, tuple]:
    return {key: (own.code_version, own.partitions) for key, own in assets.items()}
