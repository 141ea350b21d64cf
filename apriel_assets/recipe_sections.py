"""The sections of a recipe, one per stage; a key of a recipe is a field of the code that reads it.

Nothing heavy is imported here: the Dagster code location loads this module.
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator

from apriel_assets.distillation.config import DistillConfig, MatryoshkaTrainConfig, SupernetConfig
from apriel_assets.errors import UserError
from apriel_assets.evaluation.config import EvalConfig, RooflineConfig, ThroughputConfig
from apriel_assets.evaluation.lm_eval_config import MT_BENCH, JudgeConfig, LmEvalTask, expanded_suites
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.hybrid.placement import FULL_ATTENTION, MIXERS
from apriel_assets.posttraining.config import GrpoConfig
from apriel_assets.scoring.config import EstimatorConfig, LooConfig, ProbeConfig
from apriel_assets.search.config import AllocationConfig, SearchConfig
from apriel_assets.serving.config import SpeculativeConfig


def _task(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Task = Annotated[TaskSpec, BeforeValidator(_task)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TasksSection(Section):
    """What the models are trained and judged on."""

    train: tuple[Task, ...] = Field(min_length=1)
    heldout: tuple[Task, ...] = Field(min_length=1)
    num_traces: int = Field(4000, gt=0)  # training traces, over all train tasks
    num_validation_traces: int = Field(200, gt=0)  # traces that layer scores are measured on


class StepOverlay(Section):
    """What one step of the schedule does differently."""

    distill: dict[str, Any] = {}
    probe_steps: int | None = Field(None, gt=0)


class SftSection(Section):
    """End-to-end fine-tuning of one checkpoint of the schedule, with cross-entropy on the reference traces."""

    step: int  # number of replaced layers of the checkpoint, e.g. 6 for h6
    train: DistillConfig


class MergeSection(Section):
    """Weight merge of the fine-tuned checkpoint with an earlier one of the same placement."""

    method: Literal["linear", "slerp"] = "linear"
    weight: float = Field(0.5, ge=0, le=1)  # share of the fine-tuned weights


class H1Section(Section):
    """Progressive conversion: rank, replace the easiest layers, probe, replace more, fine-tune, merge."""

    mixer: Literal["mamba", "swa", "gdn", "kda"] = "mamba"
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
        if isinstance(self.order, tuple):
            if len(set(self.order)) < len(self.order):
                raise ValueError(f"order {list(self.order)} names a layer twice")
            if len(set(self.order) - set(self.keep_attention)) < self.schedule[-1]:
                raise ValueError(
                    f"order names too few layers that may be replaced for schedule {list(self.schedule)}"
                )
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


def is_cron(schedule: str) -> bool:
    """Return whether Dagster can follow a cron schedule."""
    # Only here: most recipes have none, and Dagster takes a while to import.
    from dagster._utils.schedules import is_valid_cron_string

    return is_valid_cron_string(schedule)


class EvalsSection(Section):
    """How every checkpoint is measured."""

    tasks: tuple[Task, ...] = Field(min_length=1)
    accuracy: EvalConfig = EvalConfig()
    throughput: ThroughputConfig = ThroughputConfig()
    roofline: RooflineConfig = RooflineConfig()
    lm_eval: Annotated[tuple[LmEvalTask, ...], BeforeValidator(expanded_suites)] = ()  # names, tasks, suites
    judge: JudgeConfig | None = None  # who grades mt_bench
    cron: str | None = None  # when what is shipped is evaluated again, UTC; None: never

    @model_validator(mode="after")
    def _check(self) -> "EvalsSection":
        if self.cron is not None and not is_cron(self.cron):
            raise ValueError(
                f'cron {self.cron!r} is no cron schedule; write e.g. "0 3 * * *", daily at 3:00 UTC'
            )
        names = [task.task for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"two of the tasks have one name: {', '.join(names)}; give one of them a label")
        if self.judge is None and any(task.task == MT_BENCH for task in self.lm_eval):
            raise ValueError(
                f"lm_eval has {MT_BENCH}, whose answers a judge grades; set evals.judge={{model: ..., base_url: ...}}, "
                "or leave it out"
            )
        return self


class SupernetSection(Section):
    """Which mixers every layer holds, and how they are trained together."""

    mixers: tuple[str, ...] = Field(min_length=2)
    layers: dict[int, tuple[str, ...]] = {}  # layers, from 0, that hold other mixers than the rest
    init: Literal["mapped", "random"] = "mapped"
    train: SupernetConfig

    @model_validator(mode="after")
    def _check(self) -> "SupernetSection":
        named = {"mixers": self.mixers, **{f"layers.{layer}": held for layer, held in self.layers.items()}}
        for where, held in named.items():
            if unknown := [mixer for mixer in held if mixer not in MIXERS]:
                raise ValueError(f"{where} names {unknown[0]!r}; mixers are {', '.join(MIXERS)}")
            if len(set(held)) < len(held):
                raise ValueError(f"{where} {list(held)} names a mixer twice")
            if FULL_ATTENTION not in held:
                raise ValueError(f"{where} {list(held)} lacks fa: all-FA is the teacher and the safe default")
        return self

    @property
    def all_mixers(self) -> tuple[str, ...]:
        """Every mixer that some layer holds, in the order of the field's names."""
        held = {*self.mixers, *(mixer for names in self.layers.values() for mixer in names)}
        return tuple(mixer for mixer in MIXERS if mixer in held)


def mixers_per_layer(
    num_layers: int, mixers: Sequence[str], layers: Mapping[int, Sequence[str]]
) -> list[tuple[str, ...]]:
    """Return the mixers that each layer holds, first layer first.

    Raises:
        UserError: `layers` names one that the teacher does not have.
    """
    if outside := [layer for layer in layers if not 0 <= layer < num_layers]:
        raise UserError(f"supernet.layers names {outside}; the teacher has layers 0 to {num_layers - 1}")
    return [tuple(layers.get(layer, mixers)) for layer in range(num_layers)]


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """How many placements the estimators are held against real generation on."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    placements: int = 24
    accuracy: EvalConfig = field(default_factory=lambda: EvalConfig(num_problems=20))
    least_spearman: float = 0.8  # of the estimator that ranks; less fails the asset check

    def __post_init__(self) -> None:
        if self.placements < 3:
            raise UserError(f"audit.placements={self.placements} must be at least 3, better 24")


def _estimator(value: Any) -> Any:
    return {"estimator": value} if isinstance(value, str) else value


@dataclass(frozen=True, kw_only=True)
class SearchSection(SearchConfig):
    """For which budgets placements are searched, how they are scored, and how the finalists are judged."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    budgets: tuple[float, ...]  # most that a placement may cost, all-FA = 1; one partition each
    # A name, or the settings of the scoring with it.
    estimator: Annotated[EstimatorConfig, BeforeValidator(_estimator)] = field(
        default_factory=EstimatorConfig
    )
    allocations: AllocationConfig = field(default_factory=AllocationConfig)
    accuracy: EvalConfig = field(default_factory=lambda: EvalConfig(num_problems=40))  # of the finalists
    audit: AuditConfig = field(default_factory=AuditConfig)

    def __post_init__(self) -> None:
        SearchConfig.__post_init__(self)
        if not self.budgets or not all(0 < budget < math.inf for budget in self.budgets):
            raise UserError(f"search.budgets={list(self.budgets)} must be positive numbers, at least one")
        if len(set(self.budget_keys)) < len(self.budgets):
            raise UserError(f"search.budgets={list(self.budgets)} names a budget twice")

    @property
    def budget_keys(self) -> tuple[str, ...]:
        """The budgets as partition keys."""
        return tuple(budget_key(budget) for budget in self.budgets)

    @property
    def strategy_config(self) -> SearchConfig:
        """What determines the course of the search of one budget."""
        return SearchConfig(**{own.name: getattr(self, own.name) for own in fields(SearchConfig)})


def budget_key(budget: float) -> str:
    """Return a budget as text, exactly: 0.6."""
    return repr(budget).removesuffix(".0")


class ReleaseSection(Section):
    """What becomes of the chosen placements: names, further training of the checkpoint that holds them, export."""

    names: dict[float, str] = {}  # name of a budget's placement; others are called turbo-<budget>
    sft: MatryoshkaTrainConfig | None = None
    rl: GrpoConfig | None = None  # only if asked for: it generates thousands of completions
    guard: EvalConfig = EvalConfig(num_problems=40)  # how sft and rl are compared with what they started from
    export: bool = True  # false: nothing is written for serving until `apriel export`
    speculative: SpeculativeConfig | None = None  # measured only if asked for

    @model_validator(mode="after")
    def _check(self) -> "ReleaseSection":
        names = list(self.names.values())
        if len(set(names)) < len(names) or "safe" in names:
            raise ValueError(f"names {names} must differ from each other and from safe, which is all-FA")
        if "auto" in names:
            raise ValueError("a name cannot be auto: the endpoint's router is called so")
        if bad := [name for name in names if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name)]:
            raise ValueError(f"name {bad[0]!r} may have letters, digits, - and _ only, at most 100")
        return self

    def name_of(self, budget: float) -> str:
        """Return what the placement of a budget is called."""
        return self.names.get(budget, f"turbo-{budget_key(budget)}")


def overlay_config(config: Any, changes: Mapping[str, Any], where: str) -> Any:
    """Return a config dataclass with some fields changed.

    Raises:
        ValueError: a field that the class does not have, or a value that it refuses.
    """
    known = [field.name for field in fields(config)]
    for key in changes:
        if key not in known:
            raise ValueError(f"{where}.{key} is not a key{nearest_key(key, known)}")
    current = TypeAdapter(type(config)).dump_python(config)
    return TypeAdapter(type(config)).validate_python({**current, **changes})


def nearest_key(key: str, known: Sequence[str]) -> str:
    """Return what to say of an unknown key: the key that was probably meant, or all of them."""
    if not known:
        return ""
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; keys here: {', '.join(known)}"
