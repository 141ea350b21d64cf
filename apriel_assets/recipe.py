"""The recipe: one YAML file that says everything a run depends on, typed and checked before anything runs.

Sections are made of the compute packages' own frozen config classes, so a key of the recipe is a field of the code
that reads it. Nothing heavy is imported here: the Dagster code location loads this module.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from apriel_assets.distillation.config import DistillConfig
from apriel_assets.errors import UserError
from apriel_assets.evaluation.config import EvalConfig, ThroughputConfig
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.hybrid.config import MixerOptions
from apriel_assets.hybrid.specs import TeacherSpec
from apriel_assets.scoring.config import LooConfig, ProbeConfig, StoreConfig

SHIPPED = Path(__file__).parent / "recipes"


def _task(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Task = Annotated[TaskSpec, BeforeValidator(_task)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TasksSection(_Section):
    """What the models are trained and judged on."""

    train: tuple[Task, ...] = Field(min_length=1)
    heldout: tuple[Task, ...] = Field(min_length=1)
    num_traces: int = Field(4000, gt=0)  # training traces, over all train tasks
    num_validation_traces: int = Field(200, gt=0)  # traces that layer scores are measured on


class StepOverlay(_Section):
    """What one step of the schedule does differently."""

    distill: dict[str, Any] = {}
    probe_steps: int | None = Field(None, gt=0)


class SftSection(_Section):
    """End-to-end fine-tuning of one checkpoint of the schedule, with cross-entropy on the reference traces."""

    step: int  # number of replaced layers of the checkpoint, e.g. 6 for h6
    train: DistillConfig


class MergeSection(_Section):
    """Weight merge of the fine-tuned checkpoint with an earlier one of the same placement."""

    method: Literal["linear", "slerp"] = "linear"
    weight: float = Field(0.5, ge=0, le=1)  # share of the fine-tuned weights


class H1Section(_Section):
    """Progressive conversion: rank, replace the easiest layers, probe, replace more, fine-tune, merge."""

    mixer: Literal["mamba", "swa"] = "mamba"
    init: Literal["mapped", "random"] = "mapped"
    schedule: tuple[int, ...] = Field(min_length=1)
    order: Literal["mmr", "loo", "reverse_loo"] | tuple[int, ...] = "mmr"
    keep_attention: tuple[int, ...] = ()  # layers that are never replaced
    loo: LooConfig = LooConfig()
    probe_steps: int = Field(20, gt=0)
    probe: ProbeConfig = ProbeConfig()
    distill: DistillConfig
    steps: dict[str, StepOverlay] = {}
    sft: SftSection | None = None
    merge: MergeSection | None = None

    @model_validator(mode="after")
    def _check(self) -> "H1Section":
        if list(self.schedule) != sorted(set(self.schedule)) or self.schedule[0] < 1:
            raise ValueError(f"schedule {list(self.schedule)} must be positive and strictly increasing")
        names = [f"h{k}" for k in self.schedule]
        for name, overlay in self.steps.items():
            if name not in names:
                raise ValueError(f"steps.{name} is not in the schedule; its steps are {', '.join(names)}")
            overlay_config(self.distill, overlay.distill, f"steps.{name}.distill")
        if self.sft and self.sft.step not in self.schedule:
            raise ValueError(f"sft.step {self.sft.step} is not in the schedule {list(self.schedule)}")
        if self.merge and not self.sft:
            raise ValueError("merge needs sft: it merges the fine-tuned checkpoint with the one before it")
        return self

    def distill_of(self, k: int) -> DistillConfig:
        """Return the distillation settings of step h<k>."""
        overlay = self.steps.get(f"h{k}")
        return (
            overlay_config(self.distill, overlay.distill, f"steps.h{k}.distill") if overlay else self.distill
        )

    def probe_steps_of(self, k: int) -> int:
        """Return how many distillation steps a probe for h<k> takes."""
        overlay = self.steps.get(f"h{k}")
        return overlay.probe_steps if overlay and overlay.probe_steps else self.probe_steps


class EvalsSection(_Section):
    """How every checkpoint is measured."""

    tasks: tuple[Task, ...] = Field(min_length=1)
    accuracy: EvalConfig = EvalConfig()
    throughput: ThroughputConfig = ThroughputConfig()

    @model_validator(mode="after")
    def _check(self) -> "EvalsSection":
        names = [task.task for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"two of the tasks have one name: {', '.join(names)}; give one of them a label")
        return self


class Recipe(_Section):
    """Everything a run depends on. Equal recipes give equal results."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = 0
    teacher: TeacherSpec
    tasks: TasksSection
    store: StoreConfig = StoreConfig()
    mixers: MixerOptions = MixerOptions()
    h1: H1Section
    evals: EvalsSection


def overlay_config(config: Any, changes: Mapping[str, Any], where: str) -> Any:
    """Return a config dataclass with some fields changed.

    Raises:
        ValueError: a field that the class does not have, or a value that it refuses.
    """
    known = [field.name for field in fields(config)]
    for key in changes:
        if key not in known:
            raise ValueError(f"{where}.{key} is not a key{_nearest(key, known)}")
    current = TypeAdapter(type(config)).dump_python(config)
    return TypeAdapter(type(config)).validate_python({**current, **changes})


def shipped_recipes() -> list[str]:
    """Return the names of the recipes in the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_recipe(name_or_path: str, overlays: Sequence[str] = ()) -> Recipe:
    """Read, overlay and check a recipe.

    Args:
        name_or_path: a shipped recipe's name, or a YAML file.
        overlays: `section.key=value`, the value in YAML, applied in order.

    Raises:
        UserError: not found, not YAML, unknown keys or bad values; one line that names the key.
    """
    path = SHIPPED / f"{name_or_path}.yaml"
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        raise UserError(
            f"recipe {name_or_path}: no such file or shipped recipe; shipped: {', '.join(shipped_recipes())}"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path}: not valid YAML: {error}") from error
    except OSError as error:
        raise UserError(f"recipe {path}: {error.strerror}") from error
    if not isinstance(content, dict):
        raise UserError(
            f"recipe {path}: expected sections (teacher, tasks, ...), got {type(content).__name__}"
        )
    content.setdefault("name", path.stem)
    for overlay in overlays:
        _apply_overlay(content, overlay)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError(f"recipe {path.stem}: {_first_problem(error)}") from error


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
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {overlay}: the value is not YAML: {error}") from error
    target: Any = content
    for key in keys[:-1]:
        inner = target.setdefault(key, {})
        if not isinstance(inner, dict):
            raise UserError(f"--set {overlay}: {key} holds {json.dumps(inner, default=str)}, it has no keys")
        target = inner
    target[keys[-1]] = value


def _first_problem(error: ValidationError) -> str:
    problems = error.errors()
    problem = problems[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        text = f"{where} is not a key{_nearest(str(problem['loc'][-1]), _known_keys(problem['loc'][:-1]))}"
    elif problem["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        text = f"{where} is missing"
    else:
        text = f"{where}: {problem['msg'].removeprefix('Value error, ')}"
        if isinstance(problem["input"], str | int | float | bool | None):
            text += f" (got {problem['input']!r})"
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


def _nearest(key: str, known: Sequence[str]) -> str:
    if not known:
        return ""
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; keys here: {', '.join(known)}"
