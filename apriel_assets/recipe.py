"""The recipe: one YAML file that says everything a run depends on, typed and checked before anything runs.

Sections are made of the compute packages' own frozen config classes, so a key of the recipe is a field of the code
that reads it. Nothing heavy is imported here: the Dagster code location loads this module.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, model_validator

from apriel_assets.capacity.config import CapacityConfig
from apriel_assets.errors import UserError
from apriel_assets.hybrid.config import MixerOptions
from apriel_assets.hybrid.specs import TeacherSpec
from apriel_assets.recipe_automation import AutomationSection
from apriel_assets.recipe_sections import (
    EvalsSection,
    H1Section,
    ReleaseSection,
    SearchSection,
    Section,
    SupernetSection,
    TasksSection,
    nearest_key,
)
from apriel_assets.recipe_values import refuse_non_numbers, refuse_secrets
from apriel_assets.recipe_variants import overlaid, plain_overlay
from apriel_assets.scoring.config import StoreConfig
from apriel_assets.search.config import GIVEN, MEASURED, CostsConfig
from apriel_assets.search.costs import PUBLISHED
from apriel_assets.strict_yaml import parse_yaml, read_yaml
from resources.launchers.config import ExecutionConfig

SHIPPED = Path(__file__).parent / "recipes"


# A team, or an e-mail address as Dagster has it (`is_valid_email` in dagster/_core/utils.py): it refuses all others.
_EMAIL = r"\b[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Z|a-z]{2,7}\b"
Owner = Annotated[str, Field(pattern=rf"^(team:[A-Za-z0-9_]+|{_EMAIL})$")]


class Recipe(Section):
    """Everything a run depends on. Equal recipes give equal results."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)  # a directory's
    owners: tuple[Owner, ...] = ("team:modelling",)  # shown in the UI; nothing depends on them
    seed: int = Field(0, ge=0, lt=2**32)  # what every generator takes
    teacher: TeacherSpec
    tasks: TasksSection
    store: StoreConfig = StoreConfig()
    mixers: MixerOptions = MixerOptions()
    h1: H1Section | None = None
    supernet: SupernetSection | None = None
    costs: CostsConfig = CostsConfig()
    search: SearchSection | None = None
    release: ReleaseSection = ReleaseSection()
    evals: EvalsSection
    automation: AutomationSection = AutomationSection()
    execution: ExecutionConfig = ExecutionConfig()  # where steps run: changes no result
    capacity: CapacityConfig | None = None  # what plans expect of a step that never ran: changes no result
    variants: dict[str, dict[str, Any]] = Field({})  # name: what it does differently; made when asked for

    def of_variant(self, name: str) -> "Recipe":
        """Return the recipe with one of its variants' overlays on it, and without variants.

        Raises:
            UserError: an overlay that is no part of a recipe, that gives no valid one, or that changes nothing.
        """
        base = self.model_copy(update={"variants": {}})
        overlay = plain_overlay(name, self.variants[name], Recipe.model_fields)
        try:
            found = Recipe.model_validate(overlaid(base.model_dump(mode="json"), overlay))
        except ValidationError as error:
            raise UserError(f"variants.{name}: {_first_problem(error)}") from error
        if found == base:
            raise UserError(
                f"variants.{name} changes nothing: the recipe has these values already; leave it out"
            )
        return found

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        if self.h1 is None and self.supernet is None:
            raise ValueError("a recipe needs h1, supernet or both; else there is nothing to build")
        if self.search is None:
            if self.release != ReleaseSection():
                raise ValueError("release needs search: it ships the placements that were found")
            if self.automation.generation is not None:
                raise ValueError(
                    "automation.generation needs search: it generates from placements that were found"
                )
            return self
        if self.supernet is None:
            raise ValueError("search needs supernet: it searches the mixers that the supernet holds")
        self._check_costs(self.supernet)
        self._check_mixers(self.supernet, self.search)
        if self.store.temperature != 1:
            raise ValueError(
                f"search needs store.temperature 1, not {self.store.temperature:g}: placements are scored by weights "
                "against the teacher's own distribution"
            )
        if unknown := [budget for budget in self.release.names if budget not in self.search.budgets]:
            raise ValueError(
                f"release.names has budget {unknown[0]:g}, search.budgets are {list(self.search.budgets)}; "
                "drop that name, or set release.names={}"
            )
        self._check_released(self.search)
        return self

    def _check_released(self, search: SearchSection) -> None:
        released = ("safe", *map(self.release.name_of, search.budgets))
        for where, train in (("release.sft", self.release.sft), ("release.rl", self.release.rl)):
            weights = train.placement_weights if train else {}
            if unknown := [name for name in weights if name not in released]:
                raise ValueError(
                    f"{where}.placement_weights names {unknown[0]!r}; what is released is {', '.join(released)}"
                )
            if train and not any(weights.get(name, 1) for name in released):
                raise ValueError(f"{where}.placement_weights are all 0; give one placement more")
        rl = self.release.rl
        if rl and rl.trains == "mixers" and rl.placement_weights.get("safe"):
            raise ValueError(
                "release.rl.placement_weights has safe, which is all full attention and of which trains=mixers trains "
                "nothing; leave it out, or set release.rl.trains=all"
            )

    def _check_mixers(self, supernet: SupernetSection, search: SearchSection) -> None:
        limits = search.allocations
        named = {
            "supernet.train.weights": supernet.train.weights,
            "costs.overheads": self.costs.overheads,
            "search.allocations.minimum": limits.minimum,
            "search.allocations.maximum": limits.maximum,
            "search.allocations.pinned": limits.pinned.values(),
        }
        for where, mixers in named.items():
            if strangers := [mixer for mixer in mixers if mixer not in supernet.all_mixers]:
                held = ", ".join(supernet.all_mixers)
                raise ValueError(f"{where} names {strangers[0]!r}; the supernet holds {held}")

    def _check_costs(self, supernet: SupernetSection) -> None:
        table = self.costs.table
        if table == MEASURED:
            return
        if table != GIVEN and table not in PUBLISHED:
            tables = ", ".join((MEASURED, GIVEN, *PUBLISHED))
            raise ValueError(f"costs.table {table!r} is no cost table; choose one of {tables}")
        known = {"fa", *(self.costs.given or PUBLISHED[table])}
        if missing := [mixer for mixer in supernet.all_mixers if mixer not in known]:
            raise ValueError(
                f"costs.table {table!r} has no cost of {missing[0]!r}, which the supernet holds; "
                "use table measured, or table given with every mixer"
            )


def shipped_recipes() -> list[str]:
    """Return the names of the recipes in the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def recipe_path(name_or_path: str) -> Path:
    """Return where a recipe would be read from, be it there or not."""
    shipped = SHIPPED / f"{name_or_path}.yaml"
    return shipped if shipped.is_file() else Path(name_or_path)


def load_recipe(name_or_path: str, overlays: Sequence[str] = ()) -> Recipe:
    """Read, overlay and check a recipe.

    Args:
        name_or_path: a shipped recipe's name, or a YAML file.
        overlays: `section.key=value`, the value in YAML, applied in order.

    Raises:
        UserError: not found, not YAML, unknown keys or bad values; one line that names the key.
    """
    path = recipe_path(name_or_path)
    if not path.is_file():
        raise UserError(
            f"recipe {name_or_path}: no such file or shipped recipe; shipped: {', '.join(shipped_recipes())}"
        )
    content = read_yaml(path, "recipe")
    if not isinstance(content, dict):
        raise UserError(
            f"recipe {path}: expected sections (teacher, tasks, ...), got {type(content).__name__}"
        )
    content.setdefault("name", path.stem)
    for overlay in overlays:
        _apply_overlay(content, overlay)
    refuse_secrets(content, f"recipe {path.stem}")
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError(f"recipe {path.stem}: {_first_problem(error)}") from error
    refuse_non_numbers(content, f"recipe {path.stem}")
    # With overlays, some variant may not fit any more: `open_workspace` leaves it out.
    for name in () if overlays else recipe.variants:
        try:
            recipe.of_variant(name)
        except UserError as error:
            raise UserError(f"recipe {path.stem}: {error}") from error
    return recipe


def save_recipe(recipe: Recipe, home: Path) -> None:
    """Write the recipe as last run into the home, where the UI's code location finds it."""
    from resources.atomic import replaced_file

    with replaced_file(home / "recipe.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))


def _apply_overlay(content: dict[str, Any], overlay: str) -> None:
    path, separator, text = overlay.partition("=")
    keys = path.split(".")
    if not separator or not all(keys):
        raise UserError(f"--set {overlay}: expected section.key=value, e.g. --set h1.distill.steps=50")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"--set {path}: the value is not YAML: {error}") from error
    refuse_secrets({path: value}, "--set")
    target: Any = content
    for key in keys[:-1]:
        inner = target.setdefault(key, {})
        if not isinstance(inner, dict):
            raise UserError(f"--set {path}: {key} holds {str(inner)[:80]}, it has no keys")
        target = inner
    target[keys[-1]] = value


def _first_problem(error: ValidationError) -> str:
    problems = error.errors()
    problem = problems[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        text = f"{where} is not a key{nearest_key(str(problem['loc'][-1]), _known_keys(problem['loc'][:-1]))}"
    elif problem["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        text = f"{where} is missing"
    else:
        text = (f"{where}: " if where else "") + problem["msg"].removeprefix("Value error, ")
        if isinstance(problem["input"], str | int | float | bool | None):
            text += f" (got {textwrap.shorten(repr(problem['input']), 80)})"
    return text + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def _known_keys(location: Sequence[Any]) -> list[str]:
    # Follow the schema's own field types down to the section that has the unknown key.
    kind: Any = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        annotation = kind.model_fields[part].annotation if hasattr(kind, "model_fields") else None
        options = [annotation, *getattr(annotation, "__args__", ())]
        kind = next((o for o in options if hasattr(o, "model_fields") or is_dataclass(o)), None)
        if kind is None:
            return []
    return (
        list(kind.model_fields) if hasattr(kind, "model_fields") else [field.name for field in fields(kind)]
    )
