"""What determines scores, given models, problems and a seed. No torch here: recipes import this."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from apriel_assets.errors import UserError
from apriel_assets.evaluation.lm_eval_config import LmEvalTask
from apriel_assets.slices import UNHASHED

EstimatorName = Literal[
    "ois", "ois_clipped", "snis", "ess", "reverse_kl", "log_q", "exact_match", "token_match"
]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreConfig:
    """How many completions the teacher samples, and how."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    problems: int = 300  # over all tasks
    samples: int = 6  # completions per problem
    temperature: float = 1.0  # 0: greedy
    max_new_tokens: int = 80  # a completion that has not ended by then is cut
    batch_size: int = 128  # sequences decoded at once; more was slower on CPU
    top_k_log_probs: int | None = None  # also store the k largest log-probabilities of each token; None: no

    def __post_init__(self) -> None:
        for name in ("problems", "samples", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"store.{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"store.temperature={self.temperature} must be 0 (greedy) or more, and finite")
        if self.top_k_log_probs is not None and self.top_k_log_probs < 1:
            raise UserError(f"store.top_k_log_probs={self.top_k_log_probs} must be at least 1, or null")


@dataclass(frozen=True, kw_only=True, slots=True)
class LooConfig:
    """How a layer's importance is measured when its mixer is taken out."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    # kl: KL(model without the mixer || model), on reference traces. accuracy: greedy completions, verified.
    metric: Literal["kl", "accuracy", "lm_eval"] = "kl"
    problems: int | None = None  # held-out traces to score on; None: all
    batch_size: int = 64  # traces at once
    lm_eval_task: str | LmEvalTask = "mmlu"  # only for metric lm_eval: a name, or how it is asked, too
    lm_eval_limit: int | None = None  # documents per lm-eval task, where only its name is given; None: all

    def __post_init__(self) -> None:
        for name in ("problems", "batch_size", "lm_eval_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"loo.{name}={value} must be at least 1")
        if self.lm_eval_limit is not None and not isinstance(self.lm_eval_task, str):
            raise UserError(
                "loo.lm_eval_limit goes with the name of a task; write lm_eval_task: {task: ..., limit: ...}"
            )

    @property
    def asked(self) -> LmEvalTask:
        """The task of the lm-evaluation-harness for metric lm_eval."""
        if isinstance(self.lm_eval_task, LmEvalTask):
            return self.lm_eval_task
        return LmEvalTask(task=self.lm_eval_task, limit=self.lm_eval_limit)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """How a candidate layer is tried out; the number of steps is the recipe's `probe_steps`."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    trains: Literal["swapped", "all"] = "swapped"  # the new mixer alone, or the whole student
    batch_size: int = 16  # traces per step, the same ones for every candidate
    optimizer: Literal["muon", "adamw"] = "muon"
    learning_rate: float = 1e-3  # AdamW
    muon_learning_rate: float = 1e-2
    tail_fraction: float = 0.25  # the loss is the mean over this last share of the steps

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"probe.batch_size={self.batch_size} must be at least 1")
        for name in ("learning_rate", "muon_learning_rate", "tail_fraction"):
            if getattr(self, name) <= 0:
                raise UserError(f"probe.{name}={getattr(self, name)} must be positive")
        if self.tail_fraction > 1:
            raise UserError(f"probe.tail_fraction={self.tail_fraction} must be at most 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class EstimatorConfig:
    """How a placement is scored on the teacher's stored completions. All estimators are always computed."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    # The one that ranks. Unclipped `ois` has no bias, but a search takes the largest of many values, and one
    # heavy weight made a broken placement look good (docs/placement-scores.md).
    estimator: EstimatorName = "ois_clipped"
    ess_floor: float = 0.1  # snis ranks only placements whose ESS is at least this share of the completions
    clip: float = 10.0  # largest weight in ois_clipped
    problems: int | None = None  # of the store, spread evenly; None: all
    # Completions at once: as many as a CPU's cache holds; a GPU wants more.
    batch_size: int = field(default=16, metadata=UNHASHED)
    confidence: float = 0.95  # of the bootstrap intervals
    resamples: int = 1000  # bootstrap resamples of problems
    tolerance_nats: float = 0.02  # mean difference per token between stored and recomputed teacher log-probs

    def __post_init__(self) -> None:
        if self.problems is not None and self.problems < 1:
            raise UserError(f"problems={self.problems} must be at least 1, or null for all")
        for name in ("batch_size", "resamples"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("clip", "tolerance_nats"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name}={getattr(self, name)} must be positive and finite")
        if not 0 <= self.ess_floor <= 1:
            raise UserError(f"ess_floor={self.ess_floor} is a share of the completions; give 0 to 1")
        if not 0 < self.confidence < 1:
            raise UserError(f"confidence={self.confidence} must lie between 0 and 1, e.g. 0.95")
