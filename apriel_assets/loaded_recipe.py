"""Which recipe the code location stands on: its file as it is, or the last one that loaded if the file does not.

What was loaded stays loaded, in every process: a run that the UI starts gets the recipe that the UI shows, whatever
became of the file meanwhile.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from dagster._core.definitions.definitions_load_context import DefinitionsLoadContext, DefinitionsLoadType

from apriel_assets.assets.asset_plan import AssetPlan
from apriel_assets.assets.task_keys import file_digests
from apriel_assets.errors import UserError
from apriel_assets.recipe import Recipe, load_recipe, recipe_path
from resources.artifact_store import digest
from resources.atomic import replaced_file

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

    def problem_now(self, resolve: Resolve) -> str | None:
        """Return why the source does not load, or that it is another recipe by now; None: it is what is loaded."""
        # Asked at every look of a sensor: making all assets of a long recipe takes a while.
        if self.files is not None and _files(self.source, self.recipe) == self.files:
            return None
        try:
            recipe = load_recipe(self.source)
            assets = resolve(recipe)
        except UserError as error:
            return _does_not_load(error)
        if recipe == self.recipe and _versions(assets) == _versions(self.assets):
            return None
        return f"{self.source} has changed since it was loaded: reload the code location (Deployment, Reload)"


def load_for_code_location(home: Path, resolve: Resolve) -> LoadedRecipe:
    """Return the recipe to show: `APRIEL_RECIPE`, else the one that was last run in the home, else `quickstart`.

    In a run, the one that it was started from.

    Raises:
        UserError: it does not load, and none did before.
    """
    source = _source(home)
    if (pinned := _pinned_recipe()) is not None:
        return LoadedRecipe(recipe=pinned, assets=resolve(pinned), source=source)
    last_good = home / "dagster" / "loaded_recipe.yaml"
    try:
        recipe = load_recipe(source)
        files = _files(source, recipe)
        loaded = LoadedRecipe(recipe=recipe, assets=resolve(recipe), source=source, files=files)
    except UserError as error:
        return _last_good(last_good, resolve, source, error)
    with replaced_file(last_good) as temporary:
        temporary.write_text(loaded.content)
    return loaded


def _last_good(path: Path, resolve: Resolve, source: str, error: UserError) -> LoadedRecipe:
    try:
        recipe = load_recipe(str(path))
        assets = resolve(recipe)
    except UserError:
        # None did load yet, or that one has lost a file too: the newer problem is the one to mend.
        raise error from None
    return LoadedRecipe(recipe=recipe, assets=assets, source=source, problem=_does_not_load(error))


def _does_not_load(error: UserError) -> str:
    return f"{error}; what is shown and run here is the last recipe that loaded: correct it and reload"


def _source(home: Path) -> str:
    last = home / "recipe.yaml"
    return os.environ.get("APRIEL_RECIPE") or (str(last) if last.is_file() else "quickstart")


def _pinned_recipe() -> Recipe | None:
    context = DefinitionsLoadContext.get()
    if context.load_type != DefinitionsLoadType.RECONSTRUCTION:
        return None
    content = context.reconstruction_metadata.get(_PINNED)
    return Recipe.model_validate_json(content) if content else None


def _files(source: str, recipe: Recipe) -> str | None:
    """Return a hash of the recipe's file and of the task files that it names, or None if one cannot be read."""
    tasks = (*recipe.tasks.train, *recipe.tasks.heldout, *recipe.evals.tasks)
    try:
        return digest([recipe_path(source).read_text(encoding="utf-8"), file_digests(tasks)])
    except (OSError, UnicodeDecodeError, UserError):
        return None


def _versions(assets: Mapping[str, AssetPlan]) -> dict[str, tuple]:
    return {key: (own.code_version, own.partitions) for key, own in assets.items()}
